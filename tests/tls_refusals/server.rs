//! A node that listens, and its log.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use overlayd::control::ca::CertificateAuthority;
use overlayd::control::enrol::{self, JoinCounts};
use overlayd::control::key_channel::KeyChannel;
use overlayd::control::listener::{Doors, ManagerDoors, listen};
use overlayd::control::rpc;
use overlayd::control::tls::Credentials;
use overlayd::control::tls::peer::ConnectError;
use overlayd::control::trust::Refusal;
use overlayd::events::Events;
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use crate::cluster::{Cluster, Noon};
use crate::desk::Desk;

pub(crate) struct Server {
    pub(crate) events: Events,
    pub(crate) joins: Arc<JoinCounts>,
    pub(crate) address: SocketAddr,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) channels: mpsc::Receiver<KeyChannel>,
    desk: Option<Arc<Desk>>,
    log: Log,
    _logging: tracing::subscriber::DefaultGuard,
}

impl Server {
    pub(crate) async fn start(credentials: Arc<Credentials>) -> Self {
        Self::run(credentials, None).await
    }

    pub(crate) async fn start_manager(cluster: &Cluster, credentials: Arc<Credentials>) -> Self {
        Self::run(credentials, Some(Arc::clone(&cluster.authority))).await
    }

    pub(crate) async fn run(
        credentials: Arc<Credentials>,
        authority: Option<Arc<CertificateAuthority>>,
    ) -> Self {
        // Each test has its own thread and runtime, so its own log too.
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || writer.clone())
            .finish();
        let logging = tracing::subscriber::set_default(subscriber);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (key_channels, channels) = mpsc::channel(8);
        let mut manager = None;
        let mut desk = None;
        let events = Events::default();
        let joins = Arc::default();
        if let Some(authority) = authority {
            let new = Arc::new(Desk::new(authority, credentials.trust().roots().clone(), address));
            let (rpc, streams) = mpsc::channel(8);
            tokio::spawn(rpc::serve(Arc::clone(&new), streams, events.clone()));
            let (enrol, streams) = mpsc::channel(8);
            tokio::spawn(enrol::serve(Arc::clone(&new), streams, events.clone(), Arc::clone(&joins)));
            manager = Some(ManagerDoors { rpc, enrol });
            desk = Some(new);
        }
        let manager = tokio::sync::watch::channel(manager).1;
        let doors = Doors { key_channels, manager, events: events.clone() };
        tokio::spawn(listen(listener, Arc::clone(&credentials), doors));
        Self { events, joins, address, credentials, channels, desk, log, _logging: logging }
    }

    pub(crate) async fn connect(&self, client: &Credentials) -> Result<KeyChannel, ConnectError> {
        KeyChannel::connect(client, self.address, self.credentials.identity().node()).await
    }

    pub(crate) async fn refused(&self, client: &Credentials) -> ConnectError {
        let error = self.connect(client).await.expect_err("the server lets it in");
        assert!(matches!(error.refusal(), Some(Refusal::ByPeer(_))), "{error}");
        error
    }

    pub(crate) async fn connect_plainly(
        &self,
        cluster: &Cluster,
        alpn: &[&[u8]],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        self.connect_with(&self.plain_client(cluster, alpn)).await
    }

    /// A client that is not ours: rustls as it comes, without a certificate.
    pub(crate) fn plain_client(&self, cluster: &Cluster, alpn: &[&[u8]]) -> TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(cluster.authority.root().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_details(provider, Arc::new(Noon))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    pub(crate) async fn connect_with(
        &self,
        client: &TlsConnector,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(self.credentials.identity().node().to_string()).expect("a DNS name");
        client.connect(name, TcpStream::connect(self.address).await?).await
    }

    /// Waits for a line of the log, which may follow the alert that the client has read, and clears it.
    pub(crate) async fn logged(&self, line: &str) {
        for _ in 0..200 {
            if self.log.text().contains(line) {
                return self.log.clear();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{line:?} is not in the log:\n{}", self.log.text());
    }

    pub(crate) fn desk(&self) -> &Desk {
        self.desk.as_ref().expect("a manager")
    }
}

#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("the log")).into_owned()
    }

    pub(crate) fn clear(&self) {
        self.0.lock().expect("the log").clear();
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("the log").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
