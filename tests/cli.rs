//! The real binary as a user meets it: help, usage errors, exit codes, no agent, no permission.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

#[test]
fn help_names_every_command_and_flag() {
    let help = overlayd(&["--help"]);
    assert_eq!(code(&help), 0);
    let text = stdout(&help);
    for command in [
        "agent",
        "init",
        "token",
        "join",
        "leave",
        "create",
        "ls",
        "inspect",
        "rm",
        "attach",
        "detach",
        "status",
        "unlock",
        "node",
        "peers",
        "rekey",
        "stats",
        "events",
        "demo",
        "bench",
        "ca",
        "completion",
        "help",
    ] {
        assert!(text.lines().any(|line| line.trim_start().starts_with(&format!("{command} "))), "{command}");
    }
    for (command, flags) in [
        (&["agent"][..], &["--config", "--state-dir", "--socket", "--metrics-listen", "--esp-key-log"][..]),
        (
            &["init"],
            &[
                "--advertise-addr",
                "--listen-addr",
                "--data-addr",
                "--data-port",
                "--default-addr-pool",
                "--cert-expiry",
                "--ca-cert",
                "--ca-key",
                "--autolock",
            ],
        ),
        (&["backup"], &["--passphrase-file", "--force", "<FILE>"]),
        (
            &["restore"],
            &[
                "--passphrase-file",
                "--advertise-addr",
                "--listen-addr",
                "--data-addr",
                "--autolock",
                "<FILE>",
            ],
        ),
        (&["unlock"], &["--key-file"]),
        (&["unlock-key"], &["--rotate", "-q", "--quiet"]),
        (&["token"], &["--quiet", "-q", "--rotate", "--ttl", "--once", "ls", "rm"]),
        (&["join"], &["--token", "--advertise-addr", "--data-addr", "HOST:PORT"]),
        (&["create"], &["--encrypted", "--subnet", "--gateway", "--ip-range", "--mtu", "--label", "<NET>"]),
        (&["attach"], &["--netns", "--ifname", "--name", "--ip", "--mac", "--egress-rate", "--ingress-rate"]),
        (&["detach"], &["--netns", "--endpoint"]),
        (&["leave"], &["--force"]),
        (&["node", "ls"], &["--socket", "--json"]),
        (&["rekey"], &["--peer", "[NET]"]),
        (&["node", "inspect"], &["<NODE>"]),
        (&["node", "rm"], &["<NODE>", "--force"]),
        (&["node", "promote"], &["<NODE>"]),
        (&["node", "demote"], &["<NODE>"]),
        (&["events"], &["--since", "--no-follow", "--json"]),
        (&["ca"], &["rotate", "status"]),
        (&["ca", "rotate"], &["--cert", "--key", "--detach"]),
        (&["bench"], &["--seconds", "--json"]),
    ] {
        let help = overlayd(&[command, &["--help"]].concat());
        assert_eq!(code(&help), 0, "{command:?}");
        for flag in flags {
            assert!(stdout(&help).contains(flag), "{command:?} has no {flag}:\n{}", stdout(&help));
        }
    }
}

#[test]
fn help_is_a_command_too() {
    for command in [&[][..], &["attach"], &["ca", "rotate"]] {
        let help = overlayd(&[&["help"], command].concat());
        assert_eq!(code(&help), 0, "{command:?}: {}", stderr(&help));
        assert_eq!(stdout(&help), stdout(&overlayd(&[command, &["--help"]].concat())), "{command:?}");
    }
}

#[test]
fn completion_knows_commands_and_flags_in_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = overlayd(&["completion", shell]);
        assert_eq!(code(&script), 0, "{shell}: {}", stderr(&script));
        for word in ["attach", "ingress-rate", "unlock-key"] {
            assert!(stdout(&script).contains(word), "{shell} does not complete {word}");
        }
    }
    let unknown = overlayd(&["completion", "csh"]);
    assert_eq!(code(&unknown), 2);
    assert!(stderr(&unknown).contains("possible values: bash"), "{}", stderr(&unknown));
}

#[test]
fn version_is_the_package_s() {
    let version = overlayd(&["--version"]);
    assert_eq!(
        (code(&version), stdout(&version)),
        (0, concat!("overlayd ", env!("CARGO_PKG_VERSION"), "\n").into())
    );
}

#[test]
fn wrong_arguments_are_usage_errors_that_name_the_argument() {
    for (arguments, named) in [
        (&[][..], "Usage: overlayd"),
        (&["fly"], "'fly'"),
        (&["ls", "--color"], "'--color'"),
        (&["agent", "--metrics-listen", "9477"], "like 127.0.0.1:9477"),
        (&["init"], "--advertise-addr"),
        (&["init", "--advertise-addr", "0.0.0.0"], "other nodes cannot reach it"),
        (&["init", "--advertise-addr", "192.0.2.1", "--cert-expiry", "long"], "write it like 2160h"),
        (&["init", "--advertise-addr", "192.0.2.1", "--data-port", "0"], "--data-port"),
        (&["init", "--advertise-addr", "192.0.2.1", "--ca-cert", "root.pem"], "--ca-key"),
        (&["token", "king"], "possible values: worker, manager"),
        (&["token"], "<worker|manager>"),
        (&["token", "worker", "--rotate", "--once"], "cannot be used with"),
        (&["token", "worker", "--ttl", "2 fortnights"], "like 2h"),
        (&["token", "rm"], "<ID>"),
        (&["token", "rm", "x"], "25 digits"),
        (&["join", "192.0.2.1:2377"], "--token"),
        (&["join", "--token", "x", "a:b:c"], "HOST:PORT"),
        (&["create", "a/b"], "network name \"a/b\" is not valid"),
        (&["create", "--subnet", "10.1.0.0/33", "red"], "10.1.0.0/33"),
        (&["create", "--gateway", "10.1.0.1", "red"], "--subnet"),
        (&["create", "--subnet", "10.1.0.0/24", "--gateway", "10.2.0.1", "red"], "none of the subnets"),
        (&["create", "--mtu", "70000", "red"], "70000"),
        (&["create", "--label", "x", "red"], "KEY=VALUE"),
        (&["attach", "red"], "--netns"),
        (&["attach", "red", "--netns", "c1", "--egress-rate", "0mbit"], "like 100mbit"),
        (&["attach", "red", "--netns", "c1", "--ingress-rate", "100mbps"], "like 100mbit"),
        (&["attach", "red", "--netns", "c1", "--mac", "1:2"], "write six octets"),
        (&["attach", "red", "--netns", "c1", "--ifname", "sixteen-letters!"], "1 to 15 characters"),
        (&["detach", "red"], "--netns"),
        (
            &["detach", "red", "--netns", "c1", "--endpoint", "0123456789012345678901234"],
            "cannot be used with",
        ),
        (&["detach", "red", "--endpoint", "1"], "25 digits"),
        (&["node"], "ls"),
        (&["rekey", "red", "--peer", "b"], "cannot be used with"),
        (&["node", "rm"], "<NODE>"),
        (&["node", "rm", "a/b"], "a/b"),
        (&["events", "--since", "yesterday"], "an age like 10m"),
        (&["ca", "rotate", "--cert", "root.pem"], "--key"),
        (&["bench", "--seconds", "0"], "1..=600"),
    ] {
        let output = overlayd(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(named), "{arguments:?} does not name {named}: {}", stderr(&output));
        assert!(!stderr(&output).contains("error:"), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{arguments:?} wrote to standard output");
    }
}

#[test]
fn without_an_agent_every_call_fails_and_says_how_to_start_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("agent.sock");
    for call in [
        &["init", "--advertise-addr", "192.0.2.1"][..],
        &["token", "worker", "-q"],
        &["token", "worker", "--once", "--ttl", "2h"],
        &["token", "ls"],
        &["token", "rm", "0123456789012345678901234"],
        &["join", "--token", "x", "192.0.2.1:2377"],
        &["leave"],
        &["create", "red"],
        &["ls"],
        &["inspect", "red"],
        &["rm", "red"],
        &["attach", "red", "--netns", "/proc/self/ns/net"],
        &["detach", "red", "--endpoint", "0123456789012345678901234"],
        &["status"],
        &["node", "ls"],
        &["node", "rm", "w"],
        &["peers"],
        &["rekey"],
        &["stats"],
        &["events"],
        &["ca"],
        &["ca", "status"],
        &["ca", "rotate"],
    ] {
        let output = at(&socket, call);
        assert_eq!(code(&output), 1, "{call:?}: {}", stderr(&output));
        let error = stderr(&output);
        assert!(error.starts_with("overlayd: no agent is running at "), "{call:?}: {error}");
        assert!(error.contains("'overlayd agent'") && error.contains("--socket"), "{call:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{call:?}: {error}");
    }
}

#[test]
fn bench_needs_no_agent_and_no_rights_and_recommends_what_it_measured() {
    let output = at(Path::new("/no/such/place.sock"), &["--json", "bench", "--seconds", "1"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let measured = report["measurements"].as_array().expect("measurements");
    for suite in ["aes-256-gcm", "aes-128-gcm", "chacha20-poly1305"] {
        for load in ["64 B", "512 B", "1400 B", "super-frames"] {
            let same = |m: &&serde_json::Value| m["suite"] == suite && m["load"] == load && m["threads"] == 1;
            let packets = measured.iter().find(same).expect("a measurement")["packets_per_second"].as_u64();
            assert!(packets > Some(0), "{suite} {load}");
        }
    }
    let lanes = report["recommendation"]["lanes"].as_u64();
    assert!(lanes >= Some(1) && lanes <= report["processor"]["cores"].as_u64(), "{lanes:?}");
    assert_eq!(report["recommendation"]["suites"].as_array().map(Vec::len), Some(2));
}

#[test]
fn the_socket_comes_from_the_environment_too() {
    let output = command().env("OVERLAYD_SOCKET", "/no/such/place.sock").arg("ls").output().expect("a run");
    assert!(stderr(&output).contains("/no/such/place.sock"), "{}", stderr(&output));
}

#[test]
fn a_socket_without_permission_says_which_group_opens_it_or_how_to_make_one() {
    for (mode, told, untold) in [
        (0o060, "the group that owns the socket ('usermod -aG overlayd USER'", "groupadd"),
        (0o000, "'groupadd --system overlayd', restart the agent, 'usermod -aG overlayd USER'", "owns"),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("agent.sock");
        let _agent = UnixListener::bind(&socket).expect("a socket");
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(mode)).expect("a mode");
        let mut status = command();
        if rustix::process::geteuid().is_root() {
            // Root, fake root too, may connect to anything by this capability.
            status = Command::new("setpriv");
            status.args(["--bounding-set=-dac_override", "--inh-caps=-dac_override"]);
            status.arg(env!("CARGO_BIN_EXE_overlayd"));
        }
        status.arg("--socket").arg(&socket).arg("status");
        let output = status.output().expect("a run");
        assert_eq!(code(&output), 1, "{}", stderr(&output));
        let error = stderr(&output);
        assert!(error.starts_with("overlayd: no permission to use "), "{error}");
        assert!(error.contains("sudo") && error.contains(told) && !error.contains(untold), "{error}");
    }
}

#[test]
fn a_failure_is_json_where_json_is_asked_for_and_exits_as_it_would() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("agent.sock");
    let gateway = ["create", "--subnet", "10.1.0.0/24", "--gateway", "10.2.0.1", "red"];
    for (arguments, exit, kind, named) in [
        (&["ls"][..], 1, "no_agent", "no agent is running at "),
        (&["events"], 1, "no_agent", "no agent is running at "),
        (&["attach", "red", "--netns", "no-such-container"], 1, "failed", "no-such-container"),
        (&["unlock", "--key-file", "/no/such/file"], 1, "failed", "No such file or directory"),
        (&gateway, 2, "usage", "none of the subnets"),
        (&["fly"], 2, "usage", "unrecognized subcommand 'fly'"),
        (&["attach", "red", "--netns"], 2, "usage", "a value is required"),
        (&["agent"], 2, "usage", "'--json' cannot be used with 'agent'"),
        (&["demo"], 2, "usage", "'--json' cannot be used with 'demo'"),
    ] {
        let output = at(&socket, &[&["--json"], arguments].concat());
        assert_eq!((code(&output), stdout(&output).as_str()), (exit, ""), "{arguments:?}");
        let told: serde_json::Value = serde_json::from_str(&stderr(&output)).expect("JSON");
        assert_eq!(told["error"]["kind"], kind, "{arguments:?}");
        let message = told["error"]["message"].as_str().expect("a message");
        assert!(message.contains(named), "{arguments:?}: {message}");
    }
}

#[test]
fn an_unknown_namespace_is_named_before_the_agent_is_asked() {
    let output = at(Path::new("/no/such/place.sock"), &["attach", "red", "--netns", "no-such-container"]);
    assert_eq!(code(&output), 1);
    let error = stderr(&output);
    assert!(error.starts_with("overlayd: no network namespace \"no-such-container\""), "{error}");
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused_with_its_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("overlayd.toml");
    std::fs::write(&file, "[log]\nlevel = \"info\"\n\n[flood]\nbrust = 3\n").expect("a file");
    let file = file.to_str().expect("text");
    let output = overlayd(&["agent", "--config", file]);
    assert_eq!(code(&output), 1);
    let error = stderr(&output);
    assert!(error.starts_with(&format!("overlayd: {file}:5: ")) && error.contains("`brust`"), "{error}");
    let output = overlayd(&["agent", "--config", "/no/such/file.toml"]);
    assert_eq!(
        stderr(&output),
        "overlayd: cannot read the configuration /no/such/file.toml: No such file or directory (os error 2)\n"
    );
}

fn overlayd(arguments: &[&str]) -> Output {
    command().args(arguments).output().expect("the binary runs")
}

fn at(socket: &Path, arguments: &[&str]) -> Output {
    command().arg("--socket").arg(socket).args(arguments).output().expect("the binary runs")
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overlayd"));
    command.env_remove("OVERLAYD_SOCKET");
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("no signal")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}
