//! Three managers whose state is in a real etcd of three members: one of each dies, one is cut off, under a
//! stream of changes and traffic; and managers are made and unmade.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlayd::api::types::{
    AttachResponse, CreateNetworkResponse, DetachResponse, ListNetworksResponse, RemoveNetworkResponse,
    StoreResponse,
};
use overlayd::boot_time::BootTime;
use overlayd::cluster::{ManagerState, Role};
use overlayd::control::store::Store;
use overlayd::events::{Event, Recorded};
use overlayd::io::clock::boot_time;
use overlayd::lab::{Container, Host, eventually};
use rustix::process::Signal;

use support::cut_off::{cut_overlayd, mend_overlayd, plug_in, unplug};
use support::etcd::Etcd;
use support::managers::{are_reachable, managers, three_managers_and_two_workers};
use support::swarm::{Agent, PATIENCE, Swarm};
use support::test_program;

test_program! {
    managers_and_members_of_etcd_that_die_lose_nothing_and_give_nothing_twice
}

fn managers_and_members_of_etcd_that_die_lose_nothing_and_give_nothing_twice() {
    let (swarm, mut etcd) = three_managers_and_two_workers();
    swarm.create_encrypted("red");
    let (four, five) = (swarm.attach(4, "red", "c4"), swarm.attach(5, "red", "c5"));
    swarm.assert_joined(&four, &five);
    let history = History::default();
    let done = AtomicBool::new(false);
    // Containers that are attached meanwhile and stay.
    let _staying = std::thread::scope(|scope| {
        let pings = scope.spawn(|| four.pings_until(&done, &five, Duration::from_millis(5)));
        for agent in &swarm.agents[..3] {
            scope.spawn(|| make_networks(agent, &history, &done));
        }
        let attaching = [&swarm.agents[3], &swarm.agents[4]]
            .map(|agent| scope.spawn(|| attach_and_detach(&swarm, agent, &history, &done)));
        let disaster = std::panic::AssertUnwindSafe(|| live_through_disasters(&swarm, &mut etcd, &history));
        let survived = std::panic::catch_unwind(disaster);
        done.store(true, Ordering::Relaxed);
        let (sent, received) = pings.join().unwrap();
        if let Err(panic) = survived {
            std::panic::resume_unwind(panic);
        }
        assert!(sent > 500 && received == sent, "{received} of {sent} pings answered\n{}", swarm.drops());
        attaching.map(|attaching| attaching.join().unwrap())
    });
    history.check(swarm.agent(1));
    make_and_unmake(&swarm);
}

fn live_through_disasters(swarm: &Swarm, etcd: &mut Etcd, history: &History) {
    let workers = [swarm.agent(4), swarm.agent(5)];
    let others = |number: usize| -> Vec<&Host> {
        (1..=5).filter(|other| *other != number).map(|other| swarm.lab.host(other)).collect()
    };
    let is_whole = || swarm.agents[..3].iter().all(are_reachable);
    let seen = || {
        swarm.agents[..3].iter().map(|agent| (boot_time(), managers(agent), boot_time())).collect::<Vec<_>>()
    };
    history.await_more(1);

    // The manager that a worker has its session with dies.
    let victim = await_manager_of(workers[0]);
    let killed = boot_time();
    swarm.agent(victim).kill();
    assert_moved(&workers, victim, killed);
    history.await_more(1);

    swarm.start(victim);
    assert!(eventually(PATIENCE, || are_reachable(swarm.agent(victim))), "{}", swarm.agent(victim).log());

    // And then each of the others.
    for other in (1..=3).filter(|other| *other != victim) {
        let killed = boot_time();
        swarm.agent(other).kill();
        assert_moved(&workers, other, killed);
        history.await_more(1);
        swarm.start(other);
        assert!(eventually(PATIENCE, is_whole), "{:?}\n{}", seen(), swarm.agent(other).log());
    }

    // One does not run, and its kernel answers for it.
    let victim = await_manager_of(workers[0]);
    swarm.agent(victim).signal(Signal::STOP);
    assert_moved(&workers, victim, boot_time());
    history.await_more(1);

    swarm.agent(victim).signal(Signal::CONT);
    assert!(eventually(PATIENCE, is_whole), "{:?}\n{}", seen(), swarm.agent(victim).log());

    // Each member of etcd dies, the leader first.
    let leader = etcd.leader();
    for member in [leader, (leader + 1) % 3, (leader + 2) % 3] {
        etcd.kill(member);
        history.await_more(1);

        etcd.restart(member);
        etcd.wait_for(member);
        history.await_more(1);
    }

    // The manager that a worker is with now hears nothing of any agent, but reaches etcd.
    let victim = await_manager_of(workers[0]);
    let lonely = swarm.lab.host(victim);
    cut_overlayd(lonely, &others(victim));
    others(victim).iter().for_each(|host| cut_overlayd(host, &[lonely]));
    assert_moved(&workers, victim, boot_time());
    history.await_more(1);

    mend_overlayd(lonely, &others(victim));
    others(victim).iter().for_each(|host| mend_overlayd(host, &[lonely]));
    assert!(eventually(PATIENCE, is_whole), "{:?}\n{}", seen(), swarm.agent(victim).log());

    // One is cut off with the member of etcd beside it.
    let victim = await_manager_of(workers[0]);
    unplug(swarm.lab.host(victim));
    assert_moved(&workers, victim, boot_time());
    history.await_more(1);

    plug_in(swarm.lab.host(victim));
    assert!(eventually(PATIENCE, is_whole), "{:?}\n{}", seen(), swarm.agent(victim).log());
    history.await_more(1);
}

/// Managers are made workers, and the last one stays.
fn make_and_unmake(swarm: &Swarm) {
    let id = |number: usize| swarm.agent(number).status().cluster.unwrap().node.id;
    // Asked of itself, it has another do it.
    swarm.agent(3).done(&["node", "demote", id(3).as_str()]);
    let refusal = || swarm.agent(3).refused(&["create", "of-a-worker"]);
    // Refused at once, by its own former manager as long as it asks that one, and by itself as that is cut off.
    let first = refusal();
    let says = ["is no manager any more: ask", "only managers may", "is a worker, not a manager"];
    assert!(says.iter().any(|says| first.contains(says)), "{first}");
    assert!(eventually(PATIENCE, || refusal().contains("only managers may")), "{}", refusal());
    let is_worker = || {
        let node = swarm.agent(3).status().cluster.unwrap().node;
        node.role == Role::Worker && managers(swarm.agent(1)).len() == 2
    };
    assert!(eventually(PATIENCE, is_worker), "{}", swarm.agent(3).log());
    swarm.agent(3).kill();
    let kept = Store::open(&swarm.agent(3).state_dir()).unwrap().shared_store().unwrap();
    assert!(kept.is_none(), "it keeps what opens the cluster's store");
    swarm.start(3);

    // Made one again, it is believed in spite of what was said of it.
    swarm.agent(1).done(&["node", "promote", id(3).as_str()]);
    let is_back = || managers(swarm.agent(3)).len() == 3 && are_reachable(swarm.agent(3));
    assert!(eventually(PATIENCE, is_back), "{}", swarm.agent(3).log());
    let network: CreateNetworkResponse = swarm.agent(3).ask(&["create", "of-a-manager"]);
    swarm.agent(3).done(&["rm", network.network.name.as_str()]);

    let [leaving, last, demoted] = remove_the_manager_of_a_manager(swarm);
    swarm.agent(leaving).done(&["leave"]);
    swarm.agent(last).done(&["node", "demote", id(demoted).as_str()]);
    let only = || managers(swarm.agent(last)) == [(id(last), ManagerState::Reachable)];
    assert!(eventually(PATIENCE, only), "{:?}", managers(swarm.agent(last)));
    for refused in [["node", "demote", id(last).as_str()].as_slice(), &["leave"]] {
        let refusal = swarm.agent(last).refused(refused);
        assert!(refusal.contains("only"), "{refusal}");
    }
}

/// Whoever has its session with the manager that it removes by force is told that this was done, as the audit log
/// is. The managers that are left; the last of them has endpoints.
fn remove_the_manager_of_a_manager(swarm: &Swarm) -> [usize; 3] {
    let asking = swarm.agent(4);
    let id = |agent: &Agent| agent.status().cluster.unwrap().node.id;
    // Of a worker that is promoted, the session stays with the manager that it has been with.
    swarm.agent(1).done(&["node", "promote", id(asking).as_str()]);
    let is_manager = || managers(asking).len() == 4 && are_reachable(asking);
    assert!(eventually(PATIENCE, is_manager), "{}", asking.log());
    let victim = await_manager_of(asking);
    assert_ne!(victim, asking.number, "it has its session with itself");
    let removed = id(swarm.agent(victim));
    asking.done(&["node", "rm", "--force", removed.as_str()]);
    // It has nothing of the state any more, and says why.
    let store = || swarm.agent(victim).try_ask::<StoreResponse>(&["store"]);
    assert!(eventually(PATIENCE, || store().is_none()), "{:?}", store());
    let refusal = || swarm.agent(victim).refused(&["store"]);
    assert!(eventually(PATIENCE, || refusal().contains("was removed from its cluster")), "{}", refusal());
    let left: Vec<_> = (1..=4).filter(|number| *number != victim).collect();
    assert!(
        eventually(PATIENCE, || managers(asking).len() == 3 && are_reachable(asking)),
        "{}",
        asking.log()
    );
    for agent in left.iter().map(|number| swarm.agent(*number)) {
        let told = agent.done(&["--json", "events", "--no-follow"]);
        let told = told.lines().map(|line| serde_json::from_str::<Recorded>(line).unwrap().event);
        let failed = told.filter(|event| {
            let removes = |request: &str| ["node/remove", "RemoveNode", "Leave"].contains(&request);
            matches!(
                event,
                Event::LocalRequest { request, failure: Some(_), .. } | Event::NodeRequest { request, failure: Some(_), .. }
                    if removes(request)
            )
        });
        assert_eq!(failed.collect::<Vec<_>>(), []);
    }
    left.try_into().unwrap()
}

/// The manager that an agent has a session with, as soon as it has one.
fn await_manager_of(agent: &Agent) -> usize {
    let mut found = None;
    let has_one = || {
        found = manager_of(agent);
        found.is_some()
    };
    assert!(eventually(PATIENCE, has_one), "{}", agent.log());
    found.unwrap()
}

/// The workers have sessions with other managers within five seconds.
fn assert_moved(workers: &[&Agent], victim: usize, since: BootTime) {
    for worker in workers {
        let has_moved = || manager_of(worker).is_some_and(|manager| manager != victim);
        let moved = eventually(Duration::from_secs(5).saturating_sub(boot_time().since(since)), has_moved);
        assert!(moved, "agent {} is not with another manager\n{}", worker.number, worker.log());
    }
}

/// The number of the agent whose manager an agent has a session with.
fn manager_of(agent: &Agent) -> Option<usize> {
    let managers = agent.status().cluster.unwrap().managers;
    let manager = managers.into_iter().find(|manager| manager.connected)?;
    let IpAddr::V4(address) = manager.node.advertise.ip() else { panic!("of IPv4") };
    Some(usize::from(address.octets()[3]))
}

/// What was acknowledged, and for how long it was there at least.
#[derive(Debug, Default)]
struct History {
    networks: Mutex<Vec<Life>>,
    endpoints: Mutex<Vec<Life>>,
}

/// The life of a network or an endpoint as its maker knows it.
#[derive(Debug)]
struct Life {
    name: String,
    /// What nothing else may have at the same time.
    unique: Vec<String>,
    acknowledged: BootTime,
    /// When its end was asked for, and whether that was acknowledged.
    ended: Option<(BootTime, bool)>,
}

impl Life {
    fn new(name: String, unique: Vec<String>) -> Self {
        Self { name, unique, acknowledged: boot_time(), ended: None }
    }

    /// Whether both were there at some time, for sure.
    fn overlaps(&self, other: &Self) -> bool {
        let before_end = |life: &Self, at| life.ended.is_none_or(|(ended, _)| at < ended);
        before_end(self, other.acknowledged) && before_end(other, self.acknowledged)
    }
}

impl History {
    fn count(&self) -> usize {
        self.networks.lock().unwrap().len().min(self.endpoints.lock().unwrap().len())
    }

    /// Waits until more networks and endpoints were acknowledged.
    fn await_more(&self, more: usize) {
        let before = self.count();
        assert!(eventually(PATIENCE, || self.count() >= before + more), "nothing is acknowledged any more");
    }

    /// What was acknowledged is so, and nothing was given twice.
    fn check(&self, manager: &Agent) {
        let listed: ListNetworksResponse = manager.ask(&["ls"]);
        let present: BTreeSet<String> =
            listed.networks.iter().map(|listed| listed.network.name.to_string()).collect();
        let vnis: BTreeSet<u32> = listed.networks.iter().map(|listed| listed.network.vni.get()).collect();
        assert_eq!(vnis.len(), listed.networks.len(), "a VNI twice: {listed:?}");
        check(&self.networks.lock().unwrap(), &present);
        let mut endpoints = Vec::new();
        let lives = self.endpoints.lock().unwrap();
        let is_over = |name: &str| {
            lives.iter().any(|life| life.name == name && life.ended.is_some_and(|(_, is_gone)| is_gone))
        };
        // What is detached while no manager can be asked, a manager hears of later.
        eventually(PATIENCE, || {
            endpoints = manager.inspect("red").endpoints;
            !endpoints.iter().any(|endpoint| is_over(endpoint.id.as_str()))
        });
        let present: BTreeSet<String> = endpoints.iter().map(|endpoint| endpoint.id.to_string()).collect();
        let addresses: BTreeSet<_> = endpoints.iter().flat_map(|endpoint| &endpoint.addresses).collect();
        assert_eq!(addresses.len(), 2 * endpoints.len(), "an address twice: {endpoints:?}");
        check(&lives, &present);
    }
}

fn check(lives: &[Life], present: &BTreeSet<String>) {
    assert!(lives.len() > 8, "only {} were made", lives.len());
    for (number, life) in lives.iter().enumerate() {
        match life.ended {
            None => assert!(present.contains(&life.name), "{life:?} is lost"),
            Some((_, true)) => assert!(!present.contains(&life.name), "{life:?} is back"),
            Some((_, false)) => {}
        }
        for other in lives.iter().skip(number + 1).filter(|other| life.overlaps(other)) {
            let is_shared = life.unique.iter().any(|unique| other.unique.contains(unique));
            assert!(!is_shared, "given twice:\n{life:?}\n{other:?}");
        }
    }
}

fn make_networks(agent: &Agent, history: &History, done: &AtomicBool) {
    for number in 0.. {
        if done.load(Ordering::Relaxed) {
            return;
        }
        let name = format!("net-{}-{number}", agent.number);
        let Some(made) = agent.try_ask::<CreateNetworkResponse>(&["create", &name]) else {
            std::thread::sleep(PAUSE);
            continue;
        };
        let network = made.network;
        let subnets = network.subnets.iter().map(|subnet| subnet.cidr.to_string());
        let unique = subnets.chain([network.id.to_string(), network.vni.to_string()]).collect();
        let mut life = Life::new(name, unique);
        if number % 2 == 0 {
            let asked = boot_time();
            let is_gone = agent.try_ask::<RemoveNetworkResponse>(&["rm", &life.name]).is_some();
            life.ended = Some((asked, is_gone));
        }
        history.networks.lock().unwrap().push(life);
    }
}

fn attach_and_detach(swarm: &Swarm, agent: &Agent, history: &History, done: &AtomicBool) -> Vec<Container> {
    let changing = format!("changing{}", agent.number);
    let _container = swarm.host(agent).container(&changing).unwrap();
    let mut staying = Vec::new();
    for round in 1.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let stays = round % 3 == 0;
        let name = if stays { format!("staying{}-{round}", agent.number) } else { changing.clone() };
        if stays {
            staying.push(swarm.host(agent).container(&name).unwrap());
        }
        let attached = agent.try_ask::<AttachResponse>(&["attach", "red", "--netns", &name]);
        let Some(AttachResponse { endpoint, .. }) = attached else {
            std::thread::sleep(PAUSE);
            continue;
        };
        let addresses = endpoint.addresses.iter().map(|net| net.addr().to_string());
        let unique = addresses.chain([endpoint.mac.to_string(), endpoint.id.to_string()]).collect();
        let mut life = Life::new(endpoint.id.to_string(), unique);
        if !stays {
            let asked = boot_time();
            let is_gone = agent.try_ask::<DetachResponse>(&["detach", "red", "--netns", &name]).is_some();
            life.ended = Some((asked, is_gone));
        }
        history.endpoints.lock().unwrap().push(life);
    }
    staying
}

const PAUSE: Duration = Duration::from_millis(50);
