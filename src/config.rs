//! The agent's configuration: a TOML file, which flags override.
//!
//! What is parsed is checked: unknown keys, wrong types and contradictory values are refused with
//! file, line and key. `config/overlayd.example.toml` documents every key. The command line builds
//! an [`AgentConfig`] and hands it to the agent; nothing else reads the file or the environment.

mod limits;
mod log_filter;

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use self::limits::LoweredLimits;
pub use self::log_filter::LogFilter;
use crate::id::{LaneCount, LaneId};
use crate::sa::{LimitOverrides, Suite};

/// All that the agent is told at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// The directory of keys and state; absolute.
    pub state_dir: PathBuf,
    /// The unix socket; absolute.
    pub socket: PathBuf,
    /// The unix socket for Docker, if it is to be served; absolute.
    pub docker_socket: Option<PathBuf>,
    /// Where the metrics are served over TCP, to anybody, if they are to be.
    pub metrics_listen: Option<SocketAddr>,
    /// The log on standard error.
    pub log: LogConfig,
    /// Ciphers in order of preference; empty means that the agent chooses by the processor.
    pub suites: Vec<Suite>,
    /// Threads that carry packets; absent means that the agent has one for each core.
    pub lanes: Option<LaneCount>,
    /// Lowered limits of SAs.
    pub limits: LimitOverrides,
    /// What one container may flood.
    pub flood: FloodLimit,
    /// The longest that a lane that has just had something to do looks again before it sleeps; absent
    /// means that the agent chooses by what a wake-up takes.
    pub busy_poll: Option<Duration>,
    /// Whether the processors are kept from sleeping while containers converse; absent means that the
    /// agent chooses by what a wake-up takes, with and without.
    pub keep_awake: Option<bool>,
    /// Whether the agent is given more of the processors while it carries streams; absent means where that
    /// can be had.
    pub streams_first: Option<bool>,
    /// What the kernel is asked to do for many packets at once.
    pub offload: OffloadConfig,
    /// Whether outer headers show the DSCP of what containers send.
    pub copy_dscp: bool,
    /// The shortest life that certificates of a new cluster may be given.
    pub shortest_cert_expiry: Duration,
    /// The file that every key is appended to, for Wireshark; only ever set by flag.
    pub esp_key_log: Option<PathBuf>,
}

impl AgentConfig {
    /// Reads `file`; every key that is absent has its default.
    ///
    /// # Errors
    /// When the file cannot be read or says something that it may not, with the line.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigError::Unreadable { file: file.to_owned(), source })?;
        Self::parse(&text, file)
    }

    /// Parses the text of `file`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let keys: Keys = toml::from_str(text).map_err(|e| {
            let message = e.message().trim().to_owned();
            ConfigError::Refused { file: file.to_owned(), line: line_of(text, e.span(), &message), message }
        })?;
        Ok(Self {
            state_dir: keys.state_dir.0,
            socket: keys.socket.0,
            docker_socket: keys.docker_socket.map(|path| path.0),
            metrics_listen: keys.metrics_listen.map(|address| address.0),
            log: keys.log,
            suites: keys.suites.0,
            lanes: keys.lanes.map(|lanes| lanes.0),
            limits: keys.limits.0,
            flood: keys.flood,
            busy_poll: keys.busy_poll.map(|window| window.0),
            keep_awake: keys.keep_awake,
            streams_first: keys.streams_first,
            offload: keys.offload,
            copy_dscp: keys.copy_dscp,
            shortest_cert_expiry: keys.shortest_cert_expiry.0,
            esp_key_log: None,
        })
    }
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            state_dir: DEFAULT_STATE_DIR.into(),
            socket: DEFAULT_SOCKET.into(),
            docker_socket: None,
            metrics_listen: None,
            log: LogConfig::default(),
            suites: Vec::new(),
            lanes: None,
            limits: LimitOverrides::default(),
            flood: FloodLimit::default(),
            busy_poll: None,
            keep_awake: None,
            streams_first: None,
            offload: OffloadConfig::default(),
            copy_dscp: false,
            shortest_cert_expiry: ShortestCertExpiry::default().0,
            esp_key_log: None,
        }
    }
}

/// How the agent logs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// The form of a line.
    pub format: LogFormat,
    /// What is logged.
    pub level: LogFilter,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// How much broadcast and multicast one container may send: a token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, try_from = "FloodKeys")]
pub struct FloodLimit {
    packets_per_second: u32,
    burst: u32,
}

impl FloodLimit {
    /// Packets a second in the long run; not zero.
    pub const fn packets_per_second(self) -> u32 {
        self.packets_per_second
    }

    /// Packets at once after a silence; not zero.
    pub const fn burst(self) -> u32 {
        self.burst
    }
}

impl Default for FloodLimit {
    fn default() -> Self {
        Self { packets_per_second: 1_000, burst: 200 }
    }
}

impl TryFrom<FloodKeys> for FloodLimit {
    type Error = String;

    fn try_from(keys: FloodKeys) -> Result<Self, String> {
        let default = Self::default();
        let limit = Self {
            packets_per_second: keys.packets_per_second.unwrap_or(default.packets_per_second),
            burst: keys.burst.unwrap_or(default.burst),
        };
        for (key, value) in [("packets_per_second", limit.packets_per_second), ("burst", limit.burst)] {
            if value == 0 {
                return Err(format!(
                    "{key} = 0 would stop all broadcast: ask for a low rate rather than none"
                ));
            }
        }
        Ok(limit)
    }
}

/// What the kernel is asked to do for many packets at once. All of it, unless a driver gets it wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, try_from = "OffloadKeys")]
pub struct OffloadConfig {
    /// Containers leave checksums of TCP and UDP to this program; without it, neither of the next two.
    pub tap_checksum: bool,
    /// Containers send and take TCP in super-frames.
    pub tap_tcp: bool,
    /// The same for UDP.
    pub tap_udp: bool,
    /// The data sockets send runs of packets in one call (`UDP_SEGMENT`).
    pub udp_segment: bool,
    /// The data sockets receive them in one (`UDP_GRO`).
    pub udp_gro: bool,
    /// What containers leave of checksums is left to the receiver's kernel, in encrypted networks.
    pub remote_checksum: bool,
}

impl Default for OffloadConfig {
    fn default() -> Self {
        Self {
            tap_checksum: true,
            tap_tcp: true,
            tap_udp: true,
            udp_segment: true,
            udp_gro: true,
            remote_checksum: true,
        }
    }
}

impl TryFrom<OffloadKeys> for OffloadConfig {
    type Error = String;

    fn try_from(keys: OffloadKeys) -> Result<Self, String> {
        let tap_checksum = keys.tap_checksum.unwrap_or(true);
        for (key, wanted) in [("tap_tcp", keys.tap_tcp), ("tap_udp", keys.tap_udp)] {
            if !tap_checksum && wanted == Some(true) {
                return Err(format!(
                    "{key} = true cannot be had with tap_checksum = false: leave one of them out"
                ));
            }
        }
        Ok(Self {
            tap_checksum,
            tap_tcp: keys.tap_tcp.unwrap_or(tap_checksum),
            tap_udp: keys.tap_udp.unwrap_or(tap_checksum),
            udp_segment: keys.udp_segment.unwrap_or(true),
            udp_gro: keys.udp_gro.unwrap_or(true),
            remote_checksum: keys.remote_checksum.unwrap_or(true),
        })
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file says something that it may not.
    #[error("{}:{line}: {message}", .file.display())]
    Refused {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it, naming the key.
        message: String,
    },
}

/// Where an agent keeps its state unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/overlayd";
/// Where an agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/overlayd/agent.sock";

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Keys {
    state_dir: AbsolutePath,
    socket: AbsolutePath,
    docker_socket: Option<AbsolutePath>,
    metrics_listen: Option<MetricsListen>,
    log: LogConfig,
    suites: SuitePreference,
    lanes: Option<Lanes>,
    limits: LoweredLimits,
    flood: FloodLimit,
    busy_poll: Option<BusyPoll>,
    keep_awake: Option<bool>,
    streams_first: Option<bool>,
    offload: OffloadConfig,
    copy_dscp: bool,
    shortest_cert_expiry: ShortestCertExpiry,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            state_dir: AbsolutePath(DEFAULT_STATE_DIR.into()),
            socket: AbsolutePath(DEFAULT_SOCKET.into()),
            docker_socket: None,
            metrics_listen: None,
            log: LogConfig::default(),
            suites: SuitePreference(Vec::new()),
            lanes: None,
            limits: LoweredLimits::default(),
            flood: FloodLimit::default(),
            busy_poll: None,
            keep_awake: None,
            streams_first: None,
            offload: OffloadConfig::default(),
            copy_dscp: false,
            shortest_cert_expiry: ShortestCertExpiry::default(),
        }
    }
}

/// Short enough that nobody sees a processor at work for nothing.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct BusyPoll(Duration);

impl TryFrom<String> for BusyPoll {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match humantime::parse_duration(&text) {
            Ok(window) if window <= Duration::from_millis(1) => Ok(Self(window)),
            Ok(_) | Err(_) => {
                Err(format!("busy_poll {text:?} is not between \"0s\" and \"1ms\": write \"100us\""))
            }
        }
    }
}

/// Long enough to renew a certificate in; an hour, except in tests.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct ShortestCertExpiry(Duration);

impl Default for ShortestCertExpiry {
    fn default() -> Self {
        Self(Duration::from_hours(1))
    }
}

impl TryFrom<String> for ShortestCertExpiry {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match humantime::parse_duration(&text) {
            Ok(life) if life >= Duration::from_secs(10) && life <= Self::default().0 => Ok(Self(life)),
            Ok(_) | Err(_) => {
                Err(format!("shortest_cert_expiry {text:?} is not between \"10s\" and \"1h\": leave it out"))
            }
        }
    }
}

/// A daemon's working directory is nobody's business: its paths start at the root.
#[derive(Deserialize)]
#[serde(try_from = "PathBuf")]
struct AbsolutePath(PathBuf);

impl TryFrom<PathBuf> for AbsolutePath {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        if path.is_absolute() {
            Ok(Self(path))
        } else {
            Err(format!("path {:?} is not absolute: start it with /", path.display().to_string()))
        }
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct MetricsListen(SocketAddr);

impl TryFrom<String> for MetricsListen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        metrics_address(&text).map(Self).map_err(|why| format!("metrics_listen {text:?}: {why}"))
    }
}

/// Where the metrics are served: an address and a port.
///
/// # Errors
/// When it is something else, or port 0, which nobody could find.
pub fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        Ok(_) | Err(_) => Err("write an address and a port, like 127.0.0.1:9477 or [::1]:9477".into()),
    }
}

#[derive(Deserialize)]
#[serde(try_from = "Vec<Suite>")]
struct SuitePreference(Vec<Suite>);

impl TryFrom<Vec<Suite>> for SuitePreference {
    type Error = String;

    fn try_from(suites: Vec<Suite>) -> Result<Self, String> {
        if suites.is_empty() {
            return Err("suites is empty: name at least one, or leave the key out".into());
        }
        if suites.iter().enumerate().any(|(i, suite)| suites[..i].contains(suite)) {
            return Err("suites names one twice".into());
        }
        Ok(Self(suites))
    }
}

#[derive(Deserialize)]
#[serde(try_from = "i64")]
struct Lanes(LaneCount);

impl TryFrom<i64> for Lanes {
    type Error = String;

    fn try_from(lanes: i64) -> Result<Self, String> {
        let count = u8::try_from(lanes).ok().and_then(LaneCount::new);
        let most = LaneId::MAX_LANES;
        count.map(Self).ok_or_else(|| {
            format!(
                "lanes = {lanes} is not possible: a node has 1 to {most}; without the key, one for each core"
            )
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FloodKeys {
    packets_per_second: Option<u32>,
    burst: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OffloadKeys {
    tap_checksum: Option<bool>,
    tap_tcp: Option<bool>,
    tap_udp: Option<bool>,
    udp_segment: Option<bool>,
    udp_gro: Option<bool>,
    remote_checksum: Option<bool>,
}

/// The line of what is refused. A table that is refused as a whole has its header's place, and a message that
/// begins with the key: then it is the key's line.
fn line_of(text: &str, span: Option<Range<usize>>, message: &str) -> usize {
    let before = span.and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.bytes().filter(|&byte| byte == b'\n').count();
    let key = message.split(' ').next();
    let is_key = |line: &str| line.split_once('=').is_some_and(|(name, _)| Some(name.trim()) == key);
    line + text.lines().skip(line).position(is_key).unwrap_or(0) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse("").expect("a configuration"), AgentConfig::default());
    }

    #[test]
    fn every_file_in_the_config_directory_parses_and_the_example_shows_the_defaults() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let mut seen = Vec::new();
        for entry in std::fs::read_dir(dir).expect("the directory") {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("text");
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            match name.as_str() {
                "overlayd.service" => check_unit(&text),
                "overlayd.sysusers" => assert_eq!(directives(&text), ["g overlayd -"]),
                toml if toml.ends_with(".toml") => {
                    let config = AgentConfig::parse(&text, &path).unwrap_or_else(|e| panic!("{e}"));
                    assert_eq!(config, AgentConfig::default());
                    let uncommented = uncomment(&text);
                    AgentConfig::parse(&uncommented, &path).unwrap_or_else(|e| panic!("{e}\n{uncommented}"));
                }
                _ => panic!("no test parses config/{name}"),
            }
            seen.push(name);
        }
        seen.sort_unstable();
        assert_eq!(seen, ["overlayd.example.toml", "overlayd.service", "overlayd.sysusers"]);
    }

    #[test]
    fn the_example_documents_every_key() {
        let example = include_str!("../config/overlayd.example.toml");
        let unknown = parse("nonsense = 1").expect_err("an unknown key").to_string();
        for table in ["log", "limits", "flood", "offload"] {
            let unknown = parse(&format!("[{table}]\nnonsense = 1")).expect_err("an unknown key").to_string();
            for key in expected_keys(&unknown) {
                assert!(example.contains(&format!("\n# {key} = ")), "{table}.{key} is not documented");
            }
        }
        for key in expected_keys(&unknown) {
            let documented = [format!("\n# {key} = "), format!("\n[{key}]")];
            assert!(documented.iter().any(|d| example.contains(d)), "{key} is not documented");
        }
    }

    #[test]
    fn all_keys_are_taken() {
        let config = parse(
            r#"
            state_dir = "/var/lib/o1"
            socket = "/run/o1.sock"
            metrics_listen = "[::1]:9477"
            suites = ["chacha20-poly1305", "aes-256-gcm"]
            busy_poll = "20us"
            keep_awake = false
            streams_first = true
            copy_dscp = true
            shortest_cert_expiry = "1m"
            lanes = 64
            [log]
            format = "json"
            level = "info,overlayd::control=debug"
            [limits]
            soft_packets = 100
            hard_packets = 200
            soft_age = "2s"
            [flood]
            burst = 5
            [offload]
            tap_udp = false
            udp_gro = false
            "#,
        )
        .expect("a configuration");
        assert_eq!(config.state_dir, Path::new("/var/lib/o1"));
        assert_eq!(config.socket, Path::new("/run/o1.sock"));
        assert_eq!(config.metrics_listen, Some("[::1]:9477".parse().expect("an address")));
        assert!(config.copy_dscp);
        assert_eq!(config.shortest_cert_expiry, Duration::from_mins(1));
        assert_eq!(config.suites, [Suite::ChaCha20Poly1305, Suite::Aes256Gcm]);
        assert_eq!(config.busy_poll, Some(Duration::from_micros(20)));
        assert_eq!(config.keep_awake, Some(false));
        assert_eq!(config.streams_first, Some(true));
        assert_eq!(config.lanes.map(LaneCount::get), Some(64));
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.log.level.as_str(), "info,overlayd::control=debug");
        assert_eq!((config.flood.packets_per_second(), config.flood.burst()), (1000, 5));
        let offload = OffloadConfig { tap_udp: false, udp_gro: false, ..OffloadConfig::default() };
        assert_eq!(config.offload, offload);
        let limits = config.limits.apply(Suite::Aes256Gcm);
        assert_eq!((limits.soft_packets, limits.hard_packets), (100, 200));
        assert_eq!((limits.soft_age, limits.hard_age), (Duration::from_secs(2), Duration::from_secs(3600)));
    }

    #[test]
    fn a_lowered_hard_limit_takes_the_soft_one_along() {
        let config = parse("[limits]\nhard_packets = 10\nhard_age = \"1s\"").expect("a configuration");
        let limits = config.limits.apply(Suite::Aes256Gcm);
        assert_eq!((limits.soft_packets, limits.soft_age), (10, Duration::from_secs(1)));
    }

    #[test]
    fn taps_without_checksum_offload_have_no_other() {
        let config = parse("[offload]\ntap_checksum = false\ntap_tcp = false").expect("a configuration");
        let none =
            OffloadConfig { tap_checksum: false, tap_tcp: false, tap_udp: false, ..OffloadConfig::default() };
        assert_eq!(config.offload, none);
    }

    #[test]
    fn what_is_refused_is_named_with_file_line_and_key() {
        for (text, line, named) in [
            ("state_dir = \"/a\"\n\nstatedir = 1", 3, "`statedir`"),
            ("[log]\nlevel = \"info\"\ncolour = true", 3, "`colour`"),
            ("[log]\nformat = \"xml\"", 2, "`xml`"),
            ("[log]\nlevel = \"loud=very\"", 2, "\"loud=very\""),
            ("[log]\nlevel = \"\"", 2, "log level is empty"),
            ("[log]\nlevel = \"inof\"", 2, "log level \"inof\" is none: write error, warn, info"),
            ("[log]\nlevel = \"info, overlaid=debug,verbose\"", 2, "log level \"verbose\" is none"),
            ("socket = \"agent.sock\"", 1, "not absolute"),
            ("socket = 7", 1, "integer `7`"),
            (
                "lanes = 1\nmetrics_listen = \"9477\"",
                2,
                "metrics_listen \"9477\": write an address and a port",
            ),
            ("metrics_listen = \"127.0.0.1:0\"", 1, "like 127.0.0.1:9477"),
            ("suites = []", 1, "suites is empty"),
            ("suites = [\"aes-256-gcm\", \"aes-256-gcm\"]", 1, "twice"),
            ("suites = [\"none\"]", 1, "`none`"),
            ("lanes = 0", 1, "lanes = 0 is not possible"),
            ("lanes = 65", 1, "lanes = 65 is not possible: a node has 1 to 64"),
            ("lanes = -1", 1, "lanes = -1"),
            ("lanes = \"many\"", 1, "\"many\""),
            ("\n[limits]\nhard_packets = 99999999999", 3, "hard_packets = 99999999999"),
            ("[limits]\nsoft_packets = 0", 2, "soft_packets = 0 would stop all traffic"),
            ("[limits]\nsoft_packets = 9\nhard_packets = 8", 2, "above hard_packets = 8"),
            ("[limits]\n\n# hard_age = \"1h\"\nhard_age = \"2h\"", 4, "hard_age = 2h"),
            ("[limits]\nlinger = \"11s\"", 2, "linger = 11s"),
            ("[limits]\nhard_age = \"soon\"", 2, "\"soon\""),
            ("[limits]\nhard_pakets = 1", 2, "`hard_pakets`"),
            ("busy_poll = \"2ms\"", 1, "between"),
            ("keep_awake = \"often\"", 1, "\"often\""),
            ("shortest_cert_expiry = \"2h\"", 1, "between"),
            ("[flood]\nburst = 0", 2, "burst = 0"),
            ("[flood]\nburts = 1", 2, "`burts`"),
            ("[offload]\ntap_checksum = false\ntap_udp = true", 3, "tap_udp = true"),
            ("[offload]\ntap_csum = false", 2, "`tap_csum`"),
            ("a = \n", 1, "string"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.starts_with(&format!("o.toml:{line}: ")), "line {line} expected: {error}");
            assert!(error.contains(named), "{named} is not named: {error}");
        }
        let missing = AgentConfig::read(Path::new("/no/such/file.toml")).expect_err("no file").to_string();
        assert!(missing.contains("/no/such/file.toml"), "{missing}");
    }

    fn parse(text: &str) -> Result<AgentConfig, ConfigError> {
        AgentConfig::parse(text, Path::new("o.toml"))
    }

    /// The keys that serde offers in `unknown field …, expected one of …`.
    fn expected_keys(error: &str) -> Vec<String> {
        let offered = error.split("expected").nth(1).expect("an offer");
        offered.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    /// Takes the comment sign from every documented key.
    fn uncomment(example: &str) -> String {
        let is_key = |line: &str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        let lines = example.lines().map(|line| line.strip_prefix("# ").filter(|l| is_key(l)).unwrap_or(line));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn directives(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
    }

    fn check_unit(text: &str) {
        let mut section = "";
        for line in directives(text) {
            if let Some(name) = line.strip_prefix('[') {
                section = name.strip_suffix(']').expect("a section header");
                assert!(["Unit", "Service", "Install"].contains(&section), "{line}");
            } else {
                let (key, _value) = line.split_once('=').expect("KEY=VALUE");
                assert!(!section.is_empty() && key.chars().all(char::is_alphanumeric), "{line}");
            }
        }
        for needed in ["Type=notify", "RuntimeDirectory=overlayd", "StateDirectory=overlayd", "LimitCORE=0"] {
            assert!(text.lines().any(|line| line == needed), "{needed} is missing");
        }
    }
}
