//! The `overlayd` binary: parses the command line and starts what it names, or is a runtime's CNI plugin.

use std::alloc::System;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use zeroizing_alloc::ZeroAlloc;

use overlayd::cli::{self, Cli, CliError, Command};
use overlayd::{agent, bench, demo};

/// Keys pass through buffers of libraries that do not wipe them; what is freed has nothing of them.
#[global_allocator]
static WIPING: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    if cli::cni::is_asked() {
        let (answer, is_done) = cli::cni::run(&mut io::stdin().lock());
        let printed = print(answer);
        return if is_done && printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let Cli { socket, json, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    let outcome = match command {
        Command::Agent(_) if json => {
            Err(no_json("'agent': its log is JSON by format = \"json\" in [log] of its configuration"))
        }
        Command::Completion { .. } if json => Err(no_json("'completion': it is for a shell")),
        Command::Demo if json => Err(no_json("'demo': it is for people")),
        Command::Agent(arguments) => {
            arguments.config(socket).map_err(anyhow::Error::from).and_then(|config| {
                cli::start_log(&config.log)?;
                agent::run(config)
            })
        }
        Command::Demo => demo::run(demo::DemoOptions::default()),
        Command::Bench { seconds } => {
            let report = bench::run(Duration::from_secs(seconds));
            print(if json { report.json() } else { report.text() })
        }
        Command::Completion { shell } => print(Cli::completion(shell)),
        Command::Events(arguments) => {
            let mut out = io::stdout().lock();
            cli::follow_events(&arguments, socket, json, &mut out).map_err(anyhow::Error::from)
        }
        Command::Client(command) => {
            cli::run(command, socket, json).map_err(anyhow::Error::from).and_then(print)
        }
    };
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    if let Some(report) = error.downcast_ref().and_then(CliError::report) {
        // As below.
        let _printed = print(report.to_owned());
    }
    let told = if json { cli::failure_as_json(&error) } else { format!("overlayd: {error:#}") };
    // Standard error may be gone; the exit code still tells.
    let _written = writeln!(io::stderr().lock(), "{told}");
    if error.is::<agent::Superseded>() {
        return ExitCode::from(agent::Superseded::EXIT_CODE);
    }
    ExitCode::from(error.downcast_ref().map_or(1, CliError::exit_code))
}

fn no_json(command: &str) -> anyhow::Error {
    CliError::Usage(format!("'--json' cannot be used with {command}")).into()
}

/// Help and version go to standard output; usage errors look like all our errors.
fn explain(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return if error.print().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let text = error.render().to_string();
    // As it could not be parsed, it is looked for.
    let told = if std::env::args_os().any(|argument| argument == "--json") {
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let text = text.trim_end().strip_suffix(cli::TRY_HELP).unwrap_or(text);
        format!("{}\n", cli::failure_as_json(&CliError::Usage(text.to_owned()).into()))
    } else {
        text.strip_prefix("error: ").map_or(text.clone(), |text| format!("overlayd: {text}"))
    };
    let _written = io::stderr().lock().write_all(told.as_bytes());
    ExitCode::from(2)
}

fn print(text: String) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // The reader has seen enough, as in `overlayd ls | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
