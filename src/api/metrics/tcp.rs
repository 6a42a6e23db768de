//! The metrics over TCP, for scrapers that cannot open a unix socket. Anybody who reaches the port reads them, and
//! can do nothing else: no other call is served, and no connection for long.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::api::Backend;
use crate::api::server::{ACCEPT_PAUSE, scrape};

/// Answers scrapers until `stop` resolves.
pub async fn serve<B: Backend>(
    listener: TcpListener,
    backend: Arc<B>,
    stop: impl Future<Output = ()> + Send,
) {
    serve_within(PATIENCE, listener, backend, stop).await;
}

/// As [`serve`], each within `patience`.
pub(in crate::api) async fn serve_within<B: Backend>(
    patience: Duration,
    listener: TcpListener,
    backend: Arc<B>,
    stop: impl Future<Output = ()> + Send,
) {
    let router = router(backend);
    let mut scrapes = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return,
            accepted = listener.accept(), if scrapes.len() < MOST_CONNECTIONS => match accepted {
                Ok((stream, _)) => drop(scrapes.spawn(answer(stream, router.clone(), patience))),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a scraper");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_ended) = scrapes.join_next() => {}
        }
    }
}

fn router<B: Backend>(backend: Arc<B>) -> Router {
    Router::new()
        .route("/metrics", get(scrape::<B>))
        .fallback(async || (StatusCode::NOT_FOUND, "there is /metrics, and nothing else\n"))
        .method_not_allowed_fallback(async || (StatusCode::METHOD_NOT_ALLOWED, "/metrics is GET\n"))
        .with_state(backend)
}

/// One request, however slow its sender: a scraper comes again.
async fn answer(stream: TcpStream, router: Router, patience: Duration) {
    let service = TowerToHyperService::new(router);
    let mut http = http1::Builder::new();
    http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(ASKING);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(patience, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a scraper went away"),
        Err(_elapsed) => tracing::debug!("a scraper was too slow"),
    }
}

/// So many at once; others wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 16;
/// How long one may take to ask: others wait.
const ASKING: Duration = Duration::from_secs(1);
/// As long as Prometheus waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
