//! Peers as an agent sees them: key channels over real TLS and the real key exchange, without lanes. An SA
//! counts as installed at once, and nobody sends on it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use overlayd::cluster::{Membership, Node};
use overlayd::control::key_channel::KeyChannel;
use overlayd::control::listener::{Doors, listen};
use overlayd::events::Events;
use overlayd::id::{BootId, LaneCount};
use overlayd::io::clock::boot_time;
use overlayd::negotiate::{Action, Env, Hello, Link, LinkConfig, Message, SpiPool, Standing};
use overlayd::sa::{LimitOverrides, Suite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::simulated::SimulatedNode;

/// Keeps keys with `agent` for a network for ever, as whichever of the two has the larger id.
pub(crate) async fn keep(peer: SimulatedNode, agent: Node, membership: Arc<Membership>) {
    let (opened, mut channels) = mpsc::channel(1);
    let (_, manager) = watch::channel(None);
    let doors = Doors { key_channels: opened, manager, events: Events::default() };
    let listener = TcpListener::bind(peer.node.advertise).await.unwrap();
    tokio::spawn(listen(listener, Arc::clone(&peer.credentials), doors));
    let hello = Hello { boot_id: BootId::from_entropy(rand::random()), lanes: LaneCount::ONE.get() };
    let mut link = link(&peer, &agent, &membership, hello);
    let mut spis = SpiPool::default();
    loop {
        let channel = if link.is_initiator() {
            connect(&peer, &agent).await
        } else {
            channels.recv().await.expect("it listens for ever")
        };
        use_channel(channel, hello, &mut link, &mut spis).await;
        with_env(&mut spis, |env| link.handle_channel_down(env));
    }
}

/// What a node has with an agent before there are keys, by the membership that it goes by.
pub(crate) fn link(peer: &SimulatedNode, agent: &Node, membership: &Membership, hello: Hello) -> Link {
    let config = LinkConfig {
        local: peer.node.id,
        peer: agent.id,
        network: membership.network,
        vni: membership.vni,
        hello,
        receiving_lanes: LaneCount::ONE,
        suites: vec![Suite::Aes256Gcm],
        limits: LimitOverrides::default(),
    };
    Link::new(config, Standing { epoch: membership.epoch, peer_is_member: true })
}

/// An agent takes so many handshakes of one address at a time.
async fn connect(peer: &SimulatedNode, agent: &Node) -> KeyChannel {
    loop {
        if let Ok(channel) = KeyChannel::connect(&peer.credentials, agent.advertise, agent.id).await {
            return channel;
        }
        tokio::time::sleep(Duration::from_millis(rand::random_range(100..500))).await;
    }
}

/// Until it ends.
async fn use_channel(mut channel: KeyChannel, hello: Hello, link: &mut Link, spis: &mut SpiPool) {
    if channel.send(&Message::Hello(hello).encode()).await.is_err() {
        return;
    }
    loop {
        while let Some(action) = link.poll_action() {
            if let Action::Install(install) = action {
                with_env(spis, |env| link.handle_installed(env, install.exchange));
            } else if let Action::Send(frame) = action
                && channel.send(&frame).await.is_err()
            {
                return;
            }
        }
        let wait = link.poll_timeout().map_or(Duration::MAX, |at| at.since(boot_time()));
        match tokio::time::timeout(wait, channel.receive()).await {
            Ok(Ok(Some(frame))) => received(&channel, &frame, link, spis),
            Ok(Ok(None) | Err(_)) => return,
            Err(_elapsed) => with_env(spis, |env| link.handle_timeout(env)),
        }
    }
}

fn received(channel: &KeyChannel, frame: &Bytes, link: &mut Link, spis: &mut SpiPool) {
    let message = Message::decode(frame).unwrap();
    if let Message::Hello(hello) = message {
        with_env(spis, |env| link.handle_channel_up(env, hello));
    } else if let Message::Link(frame) = message {
        let export = |context: &[u8; 32]| *channel.export(context);
        with_env(spis, |env| link.handle_frame(env, frame, &export));
    }
}

/// Does something with a link, now.
pub(crate) fn with_env<T>(
    spis: &mut SpiPool,
    call: impl FnOnce(&mut Env<'_, rand::rngs::ThreadRng>) -> T,
) -> T {
    call(&mut Env { now: boot_time(), rng: &mut rand::rng(), spis })
}
