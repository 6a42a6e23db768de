//! Server and client together, over a real socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ConnectInfo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::oneshot;
use tower::ServiceExt;

use super::metrics::serve_within;
use super::server::router;
use super::socket::Caller;
use super::types::{
    AttachRequest, AttachResponse, CaRequest, CaResponse, CaStatusRequest, CaStatusResponse,
    ChangeNodeRequest, ChangeNodeResponse, CreateNetworkRequest, CreateNetworkResponse, DetachRequest,
    DetachResponse, InitRequest, InitResponse, InspectNetworkRequest, InspectNetworkResponse,
    InspectNodeRequest, InspectNodeResponse, JoinRequest, JoinResponse, LeaveRequest, LeaveResponse,
    ListAttachmentsRequest, ListAttachmentsResponse, ListNetworksRequest, ListNetworksResponse,
    ListNodesRequest, ListNodesResponse, NetnsReference, PeersRequest, PeersResponse, RekeyRequest,
    RekeyResponse, ReleaseRequest, ReleaseResponse, RemoveNetworkRequest, RemoveNetworkResponse,
    RemoveNodeRequest, RemoveNodeResponse, RotateCaRequest, StatsRequest, StatsResponse, StatusRequest,
    StatusResponse, TokenRequest, TokenResponse,
};
use super::types::{BackupRequest, BackupResponse, Passphrase, RestoreRequest, RestoreResponse};
use super::types::{
    EventsRequest, IssueTokenRequest, IssueTokenResponse, ListTokensRequest, ListTokensResponse,
    RemoveTokenRequest, RemoveTokenResponse,
};
use super::types::{MigrateStoreRequest, MigrateStoreResponse, StoreRequest, StoreResponse};
use super::types::{UnlockKeyRequest, UnlockKeyResponse, UnlockRequest, UnlockResponse};
use super::types::{VerifyRequest, VerifyResponse};
use super::{ApiError, ApiListener, Backend, Client, ClientError, ErrorKind, serve, serve_metrics};
use crate::cluster::Role;
use crate::events::{Event, Events, Reason, Timestamp, Told};

#[tokio::test]
async fn a_call_reaches_the_backend_and_its_answer_the_caller() {
    let agent = Agent::start();
    let answer = agent.client().call(&TokenRequest { role: Role::Manager, rotate: true }).await;
    let answer = answer.expect("an answer");
    assert_eq!((answer.role, answer.token.as_str()), (Role::Manager, "rotated"));
    let networks = agent.client().call(&ListNetworksRequest {}).await.expect("an answer").networks;
    assert_eq!(networks, []);
    agent.stop().await;
}

#[tokio::test]
async fn refusals_of_every_kind_arrive_as_they_were_made() {
    let agent = Agent::start();
    for kind in ErrorKind::ALL {
        let request = RemoveNetworkRequest { network: format!("{kind:?}").parse().expect("a name") };
        let refusal = agent.client().call(&request).await.expect_err("a refusal");
        let ClientError::Refused(error) = refusal else { panic!("not a refusal: {refusal}") };
        assert_eq!(error, ApiError { kind, message: format!("because \"{kind:?}\"\nand so on") });
    }
    agent.stop().await;
}

#[tokio::test]
async fn wrong_types_and_unknown_fields_are_refused_by_the_field_s_name() {
    let agent = Agent::start();
    for (path, body, named) in [
        ("/v1/attach", r#"{"network":"red","netns":{"path":"/x","device":1,"inode":"9"}}"#, "netns.inode"),
        ("/v1/token", r#"{"role":"worker","rotate":false,"ttl":1}"#, "`ttl`"),
        ("/v1/token", r#"{"role":"king","rotate":false}"#, "role"),
        ("/v1/token", r#"{"role":"worker"}"#, "`rotate`"),
        ("/v1/network/remove", r#"{"network":"a/b"}"#, "network name \\\"a/b\\\" is not valid"),
        ("/v1/token", "not JSON", "line 1 column"),
    ] {
        let answer = agent.raw(&post(path, body)).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{path} {body}: {answer}");
        assert!(answer.contains(r#""kind":"invalid""#) && answer.contains(named), "{named}: {answer}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn an_oversized_body_is_refused() {
    let agent = Agent::start();
    let answer = agent.raw(&post("/v1/token", &"x".repeat(65 * 1024))).await;
    assert!(answer.contains("larger than 65536 bytes"), "{answer}");
    agent.stop().await;
}

#[tokio::test]
async fn backup_of_a_large_cluster_is_no_oversized_body() {
    let agent = Agent::start();
    let request = RestoreRequest {
        sealed: "x".repeat(8 << 20),
        passphrase: Passphrase::new("secret".to_owned().into()),
        advertise: None,
        listen: None,
        data_ip: None,
        autolock: None,
    };
    assert!(!format!("{request:?}").contains("secret"));
    let refusal = agent.client().call(&request).await.expect_err("a refusal").to_string();
    assert!(refusal.contains("8388608 bytes"), "{refusal}");
    agent.stop().await;
}

#[tokio::test]
async fn unknown_calls_and_methods_are_refused_in_json() {
    let agent = Agent::start();
    let answer = agent.raw(&post("/v1/fly", "{}")).await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("no call /v1/fly"), "{answer}");
    let get = "GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = agent.raw(get).await;
    assert!(answer.contains("calls are POST"), "{answer}");
    agent.stop().await;
}

#[tokio::test]
async fn events_are_streamed_and_tell_who_asked_for_what() {
    let agent = Agent::start();
    let client = agent.client();
    let mut live = client.events(&EventsRequest { since: None, follow: true }).await.expect("a stream");
    client.call(&TokenRequest { role: Role::Manager, rotate: true }).await.expect("an answer");
    client.call(&ListNetworksRequest {}).await.expect("an answer");
    let network = "Conflict".parse().expect("a name");
    client.call(&RemoveNetworkRequest { network }).await.expect_err("a refusal");

    let (uid, pid) = (rustix::process::geteuid().as_raw(), i32::try_from(std::process::id()).ok());
    let asked = |request: &str, subject: &str, failure: Option<&str>| {
        let (request, subject) = (request.to_owned(), Some(Reason::of(subject)));
        Event::LocalRequest { uid, pid, request, subject, failure: failure.map(Reason::of) }
    };
    let expected = [
        asked("token", "manager rotate", None),
        // To look is no matter for the log.
        asked("network/remove", "Conflict", Some("because \"Conflict\"\nand so on")),
    ];
    for event in expected.clone() {
        let Ok(Some(Told::Event(recorded))) = live.next().await else { panic!("no event") };
        assert_eq!(recorded.event, event);
    }

    let since = Some(Timestamp::now().before(Duration::from_secs(60)));
    let mut past = client.events(&EventsRequest { since, follow: false }).await.expect("a stream");
    let mut events = Vec::new();
    while let Some(Told::Event(recorded)) = past.next().await.expect("an event") {
        events.push(recorded.event);
    }
    assert_eq!(events, expected);
    agent.backend.events.close();
    assert!(matches!(live.next().await, Ok(None)), "the stream ends with the agent");
    agent.stop().await;
}

#[tokio::test]
async fn reader_of_events_that_does_not_read_keeps_nobody_waiting_and_learns_what_it_lost() {
    let agent = Agent::start();
    let mut slow =
        agent.client().events(&EventsRequest { since: None, follow: true }).await.expect("a stream");
    // More than the sockets between them hold.
    for _ in 0..100_000 {
        agent.backend.events.record(Event::AgentStarted { version: "x".repeat(100) });
    }
    let (mut seen, mut lost) = (0, 0);
    while seen + lost < 100_000 {
        match slow.next().await.expect("an event") {
            Some(Told::Event(_)) => seen += 1,
            Some(Told::Lost { lost: more }) => lost += more,
            None => panic!("the stream ends"),
        }
    }
    assert!(lost > 0 && seen >= 1024, "{seen} seen, {lost} lost");
    agent.backend.events.close();
    agent.stop().await;
}

#[tokio::test]
async fn metrics_are_scraped_over_the_socket_of_a_node_in_no_cluster_too() {
    let agent = Agent::start();
    let text = agent.client().metrics().await.expect("metrics");
    assert!(text.contains("overlayd_build_info{"), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    agent.stop().await;
}

#[tokio::test]
async fn metrics_and_nothing_else_are_scraped_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve_metrics(listener, Arc::new(Canned::default()), async {
        let _gone = stopped.await;
    }));
    for (request, status) in [
        ("GET /metrics", "200 OK"),
        ("POST /metrics", "405 Method Not Allowed"),
        ("GET /", "404 Not Found"),
        ("POST /v1/status", "404 Not Found"),
        ("POST /v1/token", "404 Not Found"),
    ] {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = format!("{request} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}");
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer, and the end");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {answer}");
        assert_eq!(answer.contains("overlayd_build_info"), status.starts_with("200"), "{request}: {answer}");
    }
    drop(stop);
    server.await.expect("an end");
}

#[tokio::test]
async fn scrapers_that_say_nothing_are_let_go_and_keep_nobody_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let _server = tokio::spawn(serve_within(
        Duration::from_millis(50),
        listener,
        Arc::new(Canned::default()),
        std::future::pending(),
    ));
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(address).await.expect("a connection"));
    }
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test]
async fn without_an_agent_the_client_says_how_to_start_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let nowhere = Client::new(dir.path().join("agent.sock"));
    let error = nowhere.call(&StatusRequest {}).await.expect_err("no agent");
    assert!(error.to_string().contains("overlayd agent"), "{error}");
    drop(std::os::unix::net::UnixListener::bind(nowhere.socket()).expect("a leftover"));
    let error = nowhere.call(&StatusRequest {}).await.expect_err("no agent");
    assert!(matches!(error, ClientError::NoAgent { .. }), "{error}");
}

#[tokio::test]
async fn a_stranger_on_the_socket_is_not_taken_for_an_agent() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("agent.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    let stranger = tokio::spawn(async move {
        for answer in ["SSH-2.0-hello\r\n", "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\n\r\n{}", ""] {
            let (mut stream, _) = listener.accept().await.expect("a caller");
            let mut request = [0u8; 1024];
            let _read = stream.read(&mut request).await.expect("a request");
            stream.write_all(answer.as_bytes()).await.expect("an answer");
        }
    });
    for _ in 0..3 {
        let error = Client::new(&path).call(&StatusRequest {}).await.expect_err("no agent");
        assert!(matches!(error, ClientError::Garbled { .. }), "{error}");
    }
    stranger.await.expect("the stranger");
}

#[tokio::test]
async fn a_caller_who_is_neither_root_nor_of_the_group_is_denied_every_call() {
    let stranger = Caller { uid: 1234, pid: None, allowed: false };
    for (method, path) in [("POST", "/v1/status"), ("GET", "/metrics"), ("GET", "/nowhere")] {
        let request = http::Request::builder().method(method).uri(path).extension(ConnectInfo(stranger));
        let request = request.body(axum::body::Body::from("{}")).expect("a request");
        let backend = Arc::new(Canned::default());
        let mut events = backend.events.reader(None);
        let answer = router(backend).oneshot(request).await.expect("an answer");
        let Some(Told::Event(recorded)) = events.take() else { panic!("no event") };
        assert_eq!(recorded.event, Event::CallerDenied { uid: 1234, pid: None });
        assert_eq!(answer.status(), http::StatusCode::FORBIDDEN, "{path}");
        let body = axum::body::to_bytes(answer.into_body(), 4096).await.expect("a body");
        let error: ApiError = serde_json::from_slice(&body).expect("an error");
        assert_eq!(error.kind, ErrorKind::Denied);
        assert!(error.message.contains("user 1234") && error.message.contains("group overlayd"), "{error}");
    }
}

/// An agent that knows a few answers.
struct Agent {
    dir: tempfile::TempDir,
    backend: Arc<Canned>,
    stop: oneshot::Sender<()>,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Agent {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = ApiListener::bind(&dir.path().join("agent.sock"), "no-such-group").expect("a socket");
        let (stop, stopped) = oneshot::channel();
        let backend = Arc::new(Canned::default());
        let server = tokio::spawn(serve(listener, Arc::clone(&backend), async {
            let _gone = stopped.await;
        }));
        Self { dir, backend, stop, server }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    fn client(&self) -> Client {
        Client::new(self.socket())
    }

    async fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).await.expect("a connection");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        // A server that refuses a body unread may reset the connection behind its answer.
        let _end = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).expect("text")
    }

    async fn stop(self) {
        self.stop.send(()).expect("the server runs");
        self.server.await.expect("no panic").expect("a clean stop");
        assert!(!self.dir.path().join("agent.sock").exists(), "the socket stayed behind");
    }
}

#[derive(Default)]
struct Canned {
    events: Events,
}

impl Backend for Canned {
    fn events(&self) -> &Events {
        &self.events
    }

    async fn token(&self, request: TokenRequest) -> Result<TokenResponse, ApiError> {
        let token = if request.rotate { "rotated" } else { "same" };
        let manager = "192.0.2.1:2377".parse().expect("an address");
        Ok(TokenResponse { role: request.role, token: token.into(), manager })
    }

    async fn list_networks(&self, _: ListNetworksRequest) -> Result<ListNetworksResponse, ApiError> {
        Ok(ListNetworksResponse { networks: vec![] })
    }

    async fn remove_network(&self, request: RemoveNetworkRequest) -> Result<RemoveNetworkResponse, ApiError> {
        let wanted = |kind: &&ErrorKind| format!("{kind:?}") == request.network.as_str();
        let kind = *ErrorKind::ALL.iter().find(wanted).expect("a kind");
        Err(ApiError { kind, message: format!("because \"{kind:?}\"\nand so on") })
    }

    async fn stats(&self, _: StatsRequest) -> Result<StatsResponse, ApiError> {
        Err(unused())
    }

    async fn ca(&self, _: CaRequest) -> Result<CaResponse, ApiError> {
        Err(unused())
    }

    async fn rotate_ca(&self, _: RotateCaRequest) -> Result<CaStatusResponse, ApiError> {
        Err(unused())
    }

    async fn ca_status(&self, _: CaStatusRequest) -> Result<CaStatusResponse, ApiError> {
        Err(unused())
    }

    async fn init(&self, _: InitRequest) -> Result<InitResponse, ApiError> {
        Err(unused())
    }

    async fn join(&self, _: JoinRequest) -> Result<JoinResponse, ApiError> {
        Err(unused())
    }

    async fn leave(&self, _: LeaveRequest) -> Result<LeaveResponse, ApiError> {
        Err(unused())
    }

    async fn issue_token(&self, _: IssueTokenRequest) -> Result<IssueTokenResponse, ApiError> {
        Err(unused())
    }

    async fn list_tokens(&self, _: ListTokensRequest) -> Result<ListTokensResponse, ApiError> {
        Err(unused())
    }

    async fn remove_token(&self, _: RemoveTokenRequest) -> Result<RemoveTokenResponse, ApiError> {
        Err(unused())
    }

    async fn backup(&self, _: BackupRequest) -> Result<BackupResponse, ApiError> {
        Err(unused())
    }

    async fn restore(&self, request: RestoreRequest) -> Result<RestoreResponse, ApiError> {
        Err(ApiError::invalid(format!("{} bytes", request.sealed.len())))
    }

    async fn unlock(&self, _: UnlockRequest) -> Result<UnlockResponse, ApiError> {
        Err(unused())
    }

    async fn unlock_key(&self, _: UnlockKeyRequest) -> Result<UnlockKeyResponse, ApiError> {
        Err(unused())
    }

    async fn store(&self, _: StoreRequest) -> Result<StoreResponse, ApiError> {
        Err(unused())
    }

    async fn migrate_store(&self, _: MigrateStoreRequest) -> Result<MigrateStoreResponse, ApiError> {
        Err(unused())
    }

    async fn create_network(&self, _: CreateNetworkRequest) -> Result<CreateNetworkResponse, ApiError> {
        Err(unused())
    }

    async fn inspect_network(&self, _: InspectNetworkRequest) -> Result<InspectNetworkResponse, ApiError> {
        Err(unused())
    }

    async fn attach(&self, _: AttachRequest) -> Result<AttachResponse, ApiError> {
        Err(unused())
    }

    async fn detach(&self, _: DetachRequest) -> Result<DetachResponse, ApiError> {
        Err(unused())
    }

    async fn list_attachments(&self, _: ListAttachmentsRequest) -> Result<ListAttachmentsResponse, ApiError> {
        Err(unused())
    }

    async fn release(&self, _: ReleaseRequest) -> Result<ReleaseResponse, ApiError> {
        Err(unused())
    }

    async fn status(&self, _: StatusRequest) -> Result<StatusResponse, ApiError> {
        Ok(StatusResponse {
            agent_version: String::new(),
            pid: 1,
            uptime_seconds: 0,
            state_dir: PathBuf::new(),
            esp_key_log: None,
            warnings: Vec::new(),
            locked: false,
            cluster: None,
        })
    }

    async fn list_nodes(&self, _: ListNodesRequest) -> Result<ListNodesResponse, ApiError> {
        Err(unused())
    }

    async fn verify(&self, _: VerifyRequest) -> Result<VerifyResponse, ApiError> {
        Err(unused())
    }

    async fn rekey(&self, _: RekeyRequest) -> Result<RekeyResponse, ApiError> {
        Err(unused())
    }

    async fn inspect_node(&self, _: InspectNodeRequest) -> Result<InspectNodeResponse, ApiError> {
        Err(unused())
    }

    async fn remove_node(&self, _: RemoveNodeRequest) -> Result<RemoveNodeResponse, ApiError> {
        Err(unused())
    }

    async fn change_node(&self, _: ChangeNodeRequest) -> Result<ChangeNodeResponse, ApiError> {
        Err(unused())
    }

    async fn peers(&self, _: PeersRequest) -> Result<PeersResponse, ApiError> {
        Err(unused())
    }
}

fn unused() -> ApiError {
    ApiError::internal("no test calls this")
}

fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn namespaces_cross_the_socket_with_their_identity() {
    let netns = NetnsReference { path: "/run/netns/c1".into(), device: u64::MAX, inode: 1 << 60 };
    let json = serde_json::to_string(&netns).expect("JSON");
    assert_eq!(serde_json::from_str::<NetnsReference>(&json).expect("a namespace"), netns);
}
