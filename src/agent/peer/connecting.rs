//! How a peer's task comes to a channel, where it is for this node to connect.

use std::sync::Arc;

use super::{CHANNEL_LIFE, LONGEST_PAUSE, Peer, SHORTEST_PAUSE};
use crate::api::types::PeerState;
use crate::control::key_channel::KeyChannel;
use crate::control::session::Backoff;
use crate::control::tls::peer::ConnectError;
use crate::events::{Event, Reason};
use crate::io::clock::boot_time;
use crate::worker::LaneGone;

impl Peer {
    pub(super) fn wants_to_connect(&self) -> bool {
        let is_due = self.channel.is_none() || boot_time() >= self.up_since + CHANNEL_LIFE;
        self.is_initiator() && is_due && self.connecting.is_empty()
    }

    /// Connects in the background, after a pause that grows until a channel has lasted.
    pub(super) fn connect(&mut self) {
        let pause = self.backoff.next();
        let (credentials, node) = (Arc::clone(&self.keys.credentials), self.spec.node.clone());
        self.connecting.spawn(async move {
            tokio::time::sleep(pause).await;
            KeyChannel::connect(&credentials, node.advertise, node.id).await.map(Box::new)
        });
    }

    /// Gives up the channel, and an attempt at one that leads nowhere.
    pub(super) async fn connect_anew(&mut self, why: &str) -> Result<(), LaneGone> {
        self.connecting.abort_all();
        self.channel_down(why).await?;
        self.backoff = Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE);
        Ok(())
    }

    pub(super) async fn connected(
        &mut self,
        result: Result<Box<KeyChannel>, ConnectError>,
    ) -> Result<(), LaneGone> {
        match result {
            Ok(channel) => self.channel_up(*channel).await,
            Err(error) => {
                let failure = error.to_string();
                let mut is_news = false;
                for network in self.links.keys() {
                    self.keys.set_status((*network, self.id()), |status| {
                        is_news |= status.failure.as_ref() != Some(&failure);
                        status.failure = Some(failure.clone());
                        if status.established.is_none() {
                            status.state = PeerState::Failed;
                        }
                    });
                }
                if is_news {
                    tracing::warn!(peer = %self.spec.node.name, %error, "no key channel");
                    let (peer, name) = (self.id(), self.spec.node.name.clone());
                    let reason = Reason::of(&error);
                    self.keys.events.record(Event::PeerUnreachable { peer, name, reason });
                }
                // The channel before this one may do until it is too old.
                if self.channel.is_none() {
                    self.wishes.refuse_all(&failure);
                    self.unreachable = Some(failure);
                }
                Ok(())
            }
        }
    }
}
