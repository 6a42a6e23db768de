//! How a session's updates travel: their documents are cut into pieces, so that what is under way to a slow node
//! takes little memory, however much it is to be told.
//!
//! ```text
//!  0               1
//! +---------------+-------------------------------------
//! | 1 if it ends  | part of a JSON document
//! | a document    |
//! +---------------+-------------------------------------
//! ```

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::{Code, Status};

use super::codec::{JsonCodec, not_understood};
use super::messages::{SessionRequest, ViewUpdate};
use crate::control::state::{Assembly, Documents};

/// A part of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    is_last: bool,
    text: Bytes,
}

/// The pieces of an update.
pub(super) fn cut(documents: &Documents) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for document in documents.iter() {
        let mut rest = document.clone();
        while rest.len() > LONGEST {
            pieces.push(Piece { is_last: false, text: rest.split_to(LONGEST) });
        }
        pieces.push(Piece { is_last: true, text: rest });
    }
    pieces
}

/// The updates of a session, as they come.
#[derive(Debug)]
pub struct Updates {
    pieces: Streaming<Piece>,
    document: Vec<u8>,
    assembly: Assembly,
}

impl Updates {
    pub(super) fn new(pieces: Streaming<Piece>) -> Self {
        Self { pieces, document: Vec::new(), assembly: Assembly::default() }
    }

    /// The next one; `None` when the manager has ended the session.
    ///
    /// # Errors
    /// The session breaks, or what comes is no update.
    pub async fn message(&mut self) -> Result<Option<ViewUpdate>, Status> {
        while let Some(piece) = self.pieces.message().await? {
            if self.document.len() + piece.text.len() > LONGEST_DOCUMENT {
                return Err(Status::new(
                    Code::OutOfRange,
                    "a manager tells more of a network than there can be",
                ));
            }
            self.document.extend_from_slice(&piece.text);
            if !piece.is_last {
                continue;
            }
            let read = self.assembly.read(&std::mem::take(&mut self.document)).map_err(not_understood)?;
            if let Some(update) = read {
                return Ok(Some(update));
            }
        }
        Ok(None)
    }
}

/// A message of the session, which is opened by JSON and goes on in pieces.
pub trait SessionMessage: Sized + Send + 'static {
    /// Writes it.
    ///
    /// # Errors
    /// It cannot be written.
    fn write(self, into: &mut EncodeBuf<'_>) -> Result<(), Status>;

    /// Reads one.
    ///
    /// # Errors
    /// It is none.
    fn read(from: &mut DecodeBuf<'_>) -> Result<Option<Self>, Status>;
}

impl SessionMessage for SessionRequest {
    fn write(self, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        JsonCodec::<Self, Self>::default().encoder().encode(self, into)
    }

    fn read(from: &mut DecodeBuf<'_>) -> Result<Option<Self>, Status> {
        JsonCodec::<Self, Self>::default().decoder().decode(from)
    }
}

impl SessionMessage for Piece {
    fn write(self, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.reserve(1 + self.text.len());
        into.put_u8(u8::from(self.is_last));
        into.put(self.text);
        Ok(())
    }

    fn read(from: &mut DecodeBuf<'_>) -> Result<Option<Self>, Status> {
        let is_last = match from.try_get_u8() {
            Ok(0) => false,
            Ok(1) => true,
            Ok(_) | Err(_) => {
                let what = "a piece of an update is not understood; are both nodes of the same version?";
                return Err(Status::invalid_argument(what));
            }
        };
        Ok(Some(Self { is_last, text: from.copy_to_bytes(from.remaining()) }))
    }
}

/// Encodes `E` and decodes `D`.
#[derive(Debug)]
pub struct SessionCodec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for SessionCodec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E: SessionMessage, D: SessionMessage> Codec for SessionCodec<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<E: SessionMessage, D> Encoder for SessionCodec<E, D> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, message: E, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.write(into)
    }
}

impl<E, D: SessionMessage> Decoder for SessionCodec<E, D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        D::read(from)
    }
}

/// Bytes in a piece: less than what is gathered for a connection before it is sent.
const LONGEST: usize = 16 << 10;
/// Bytes in a document: a network of a million endpoints fits.
const LONGEST_DOCUMENT: usize = 512 << 20;
