//! The caller's side of the socket: one connection for each call.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::error::{ApiError, ErrorKind};
use super::types::{Call, EventsRequest};
use crate::events::Told;

/// Calls the agent at one socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the agent at `socket`; nothing is opened before the first call.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Makes one call.
    ///
    /// # Errors
    /// When there is no agent, it refuses, or it does not answer.
    pub async fn call<C: Call>(&self, call: &C) -> Result<C::Response, ClientError> {
        let body = serde_json::to_vec(call).map_err(|e| self.garbled(e))?;
        let request = Request::post(C::PATH)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::HOST, "overlayd")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| self.garbled(e))?;
        let answer = self.exchange(request).await?;
        serde_json::from_slice(&answer).map_err(|e| self.garbled(e))
    }

    /// Asks for events, which come as they happen.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn events(&self, request: &EventsRequest) -> Result<EventStream, ClientError> {
        let body = serde_json::to_vec(request).map_err(|e| self.garbled(e))?;
        let request = Request::post(EventsRequest::PATH)
            .header(header::HOST, "overlayd")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| self.garbled(e))?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.unreachable(e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.garbled(e))?;
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|e| self.garbled(e))?;
        if response.status() != StatusCode::OK {
            let answer = self.read(response).await;
            return Err(answer.err().unwrap_or_else(|| self.garbled("a success that is none")));
        }
        Ok(EventStream {
            client: self.clone(),
            body: response.into_body(),
            read: Vec::new(),
            _sender: sender,
            _connection: connection,
        })
    }

    /// The metrics as Prometheus reads them.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let request = Request::get("/metrics")
            .header(header::HOST, "overlayd")
            .body(Full::default())
            .map_err(|e| self.garbled(e))?;
        let answer = self.exchange(request).await?;
        String::from_utf8(answer.into()).map_err(|e| self.garbled(e))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.unreachable(e))?;
        tokio::time::timeout(PATIENCE, self.answer(stream, request)).await.unwrap_or_else(|_| {
            Err(ClientError::Silent { socket: self.socket.clone(), seconds: PATIENCE.as_secs() })
        })
    }

    async fn answer(&self, stream: UnixStream, request: Request<Full<Bytes>>) -> Result<Bytes, ClientError> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.garbled(e))?;
        let conversation = async {
            let response = sender.send_request(request).await.map_err(|e| self.garbled(e))?;
            self.read(response).await
        };
        tokio::pin!(connection);
        tokio::pin!(conversation);
        tokio::select! {
            biased;
            answer = &mut conversation => answer,
            // The end of the connection is no answer, but the answer may have arrived with it.
            _ = &mut connection => conversation.await,
        }
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
        let body = body.collect().await.map_err(|e| self.garbled(e))?.to_bytes();
        if status == StatusCode::OK {
            return Ok(body);
        }
        match serde_json::from_slice::<ApiError>(&body) {
            Ok(error) => Err(ClientError::Refused(error)),
            Err(_) => Err(self.garbled(format!("HTTP status {status} without a reason"))),
        }
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        let kind = source.kind();
        if kind == io::ErrorKind::PermissionDenied {
            // The agent opens it to the group's members where it found the group when it started.
            let mode = std::fs::metadata(&socket)
                .map_or(GROUP_MAY_CONNECT, |metadata| metadata.permissions().mode());
            ClientError::NotPermitted { has_group: mode & GROUP_MAY_CONNECT != 0, socket }
        } else if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            ClientError::NoAgent { socket }
        } else {
            ClientError::Unreachable { socket, source }
        }
    }

    /// That the answer is not what this protocol has there.
    pub(crate) fn garbled(&self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Garbled { socket: self.socket.clone(), cause: cause.into() }
    }
}

/// Events as they come.
#[derive(Debug)]
pub struct EventStream {
    client: Client,
    body: Incoming,
    /// What came of lines that are not complete, or not taken.
    read: Vec<u8>,
    _sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    _connection: tokio::task::JoinHandle<hyper::Result<()>>,
}

impl EventStream {
    /// The next event; `None` when the agent has no more to tell, as when it stops.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is no event.
    pub async fn next(&mut self) -> Result<Option<Told>, ClientError> {
        loop {
            if let Some(end) = self.read.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(|e| self.client.garbled(e));
            }
            if self.read.len() > LONGEST_LINE {
                return Err(self.client.garbled("a line that does not end"));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            if let Ok(data) = frame.map_err(|e| self.client.garbled(e))?.into_data() {
                self.read.extend_from_slice(&data);
            }
        }
    }
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The agent says no.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// No socket, or nobody listens on it.
    #[error(
        "no agent is running at {}; start one with 'overlayd agent' (or 'systemctl start overlayd'), \
         or name its socket with --socket or OVERLAYD_SOCKET",
        .socket.display()
    )]
    NoAgent {
        /// The socket.
        socket: PathBuf,
    },
    /// The file's mode forbids it.
    #[error(
        "no permission to use {}; run the command with sudo, or {}", .socket.display(), group_advice(*.has_group)
    )]
    NotPermitted {
        /// The socket.
        socket: PathBuf,
        /// Whether it is for a group's members, too.
        has_group: bool,
    },
    /// Another reason of the system's.
    #[error("cannot connect to {}", .socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It took the request and said nothing.
    #[error(
        "the agent at {} has not answered within {seconds} s; its log says what it is doing",
        .socket.display()
    )]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// What it says is not this protocol.
    #[error(
        "what listens at {} does not answer like an agent of this version: {cause}",
        .socket.display()
    )]
    Garbled {
        /// The socket.
        socket: PathBuf,
        /// The parser's word.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ClientError {
    /// The kind, for programs: the agent's where it has refused.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Refused(error) => error.kind.name(),
            Self::NoAgent { .. } => "no_agent",
            Self::NotPermitted { .. } => "no_permission",
            Self::Unreachable { .. } => "unreachable",
            Self::Silent { .. } => "no_answer",
            Self::Garbled { .. } => "garbled",
        }
    }

    /// Whether the agent may have done what it was asked for: it has not said that nothing was changed.
    pub fn may_have_been_done(&self) -> bool {
        match self {
            Self::Refused(error) => error.kind == ErrorKind::Internal,
            Self::NoAgent { .. } | Self::NotPermitted { .. } | Self::Unreachable { .. } => false,
            Self::Silent { .. } | Self::Garbled { .. } => true,
        }
    }
}

const fn group_advice(has_group: bool) -> &'static str {
    if has_group {
        "join the group that owns the socket ('usermod -aG overlayd USER', then log in again)"
    } else {
        "make a group whose members may use it: 'groupadd --system overlayd', restart the agent, \
         'usermod -aG overlayd USER', log in again"
    }
}

/// A group may connect to a socket that it may write to.
const GROUP_MAY_CONNECT: u32 = 0o020;
/// An attach may wait for a manager that is just being restarted.
const PATIENCE: Duration = Duration::from_secs(120);
/// Far above the longest event.
const LONGEST_LINE: usize = 1 << 20;
/// Far above a listing of 100,000 endpoints.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;
