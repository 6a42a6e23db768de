//! Hosts that fall silent, as those do that lose their power: nobody closes a connection.

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use overlayd::boot_time::BootTime;
use overlayd::cluster::Role;
use overlayd::control::ca::CertificateAuthority;
use overlayd::control::identity::{NodeIdentity, NodeKey};
use overlayd::control::key_channel::KeyChannel;
use overlayd::control::listener::{Doors, listen};
use overlayd::control::tls::Credentials;
use overlayd::control::trust::Trust;
use overlayd::events::Events;
use overlayd::id::{ClusterId, NodeId};
use overlayd::io::clock::{boot_time, wall_clock};
use overlayd::io::netlink::Netlink;
use overlayd::lab::{Host, Lab, Underlay};
use tokio::net::TcpListener;

use crate::support::{tell, tests};

tests! {
    silent_host_is_noticed_by_both_ends_of_an_idle_key_channel
    silent_host_is_noticed_by_both_ends_while_they_send
}

fn silent_host_is_noticed_by_both_ends_of_an_idle_key_channel() {
    // Wherever in the second between two probes it happens.
    for idle in [1_000, 1_500] {
        assert_noticed(Duration::from_millis(idle), false);
    }
}

fn silent_host_is_noticed_by_both_ends_while_they_send() {
    assert_noticed(Duration::from_millis(300), true);
}

/// Has the wire between two hosts with a key channel carry nothing any more, after a while.
fn assert_noticed(idle: Duration, they_send: bool) {
    let lab = Lab::hosts(3, Underlay::default()).unwrap();
    let [acceptor, connector] = nodes();
    let (open, opened) = mpsc::channel();
    let address = SocketAddr::new(lab.host(1).v4(), 2377);
    let [one, two] = std::thread::scope(|scope| {
        let accept = {
            let (open, host) = (open.clone(), lab.host(1));
            scope.spawn(move || {
                on(host, async move {
                    let listener = TcpListener::bind(address).await.unwrap();
                    let (channels, mut accepted) = tokio::sync::mpsc::channel(1);
                    let doors = Doors {
                        key_channels: channels,
                        manager: tokio::sync::watch::channel(None).1,
                        events: Events::default(),
                    };
                    let _port = tokio::spawn(listen(listener, acceptor, doors));
                    open.send(()).unwrap();
                    use_until_broken(accepted.recv().await.unwrap(), they_send, &open).await
                })
            })
        };
        opened.recv().unwrap();
        let connect = scope.spawn(|| {
            on(lab.host(2), async {
                let expected = NodeId::from_entropy([1; 16]);
                let channel = KeyChannel::connect(&connector, address, expected).await.unwrap();
                use_until_broken(channel, they_send, &open).await
            })
        });
        for _ in 0..2 {
            opened.recv().unwrap();
        }
        std::thread::sleep(idle);
        Netlink::within(lab.switch().unwrap(), |netlink| {
            netlink.set_up(&netlink.link(&"br0".parse().unwrap())?, false)
        })
        .unwrap();
        let silent = boot_time();
        [accept, connect].map(|end| end.join().unwrap().since(silent))
    });
    tell(&format!("noticed after {one:?} and {two:?}"));
    for noticed in [one, two] {
        assert!(noticed > Duration::from_millis(500), "{noticed:?}: it was closed, not silent");
        assert!(noticed < WITHIN, "noticed after {noticed:?}");
    }
}

/// Receives, and sends now and then, until the channel is broken; when that was.
async fn use_until_broken(mut channel: KeyChannel, sends: bool, open: &mpsc::Sender<()>) -> BootTime {
    open.send(()).unwrap();
    loop {
        let pause = Duration::from_millis(if sends { 50 } else { 60_000 });
        match tokio::time::timeout(pause, channel.receive()).await {
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None) | Err(_)) => return boot_time(),
            Err(_) if channel.send(b"still here").await.is_err() => return boot_time(),
            Err(_) => {}
        }
    }
}

fn on<T: Send>(host: &Host, work: impl Future<Output = T> + Send) -> T {
    let run = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    host.run_in(run).unwrap()
}

/// Two nodes of one cluster.
fn nodes() -> [Arc<Credentials>; 2] {
    let authority = CertificateAuthority::create(ClusterId::from_entropy([7; 16]), wall_clock()).unwrap();
    [1, 2].map(|number| {
        let (key, node) = (NodeKey::generate().unwrap(), NodeId::from_entropy([number; 16]));
        let csr = key.request_pem().unwrap();
        let leaf = authority.issue(&csr, node, Role::Worker, wall_clock(), time::Duration::DAY).unwrap();
        let identity = NodeIdentity::new(vec![leaf], &key, authority.root().clone()).unwrap();
        let trust = Trust::of(&identity).unwrap();
        Credentials::new(identity, trust, wall_clock).unwrap()
    })
}

/// Two seconds, and what the kernel's timers and a busy machine add.
const WITHIN: Duration = Duration::from_millis(2_400);
