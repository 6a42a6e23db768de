//! The agent as Docker has it used: its plugin socket, with the words and the steps of libnetwork's remote drivers.

mod engine;

use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use overlayd::io::clock::boot_time;
use overlayd::lab::{Container, Ping, Underlay, eventually};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use self::engine::{Docker, SUBNETS, Started, start};
use crate::support::swarm::{Family, Swarm};
use crate::support::{tell, tests};

tests! {
    agent_that_is_killed_between_two_calls_goes_on_with_what_it_holds
    containers_reach_one_another_and_keep_nothing_when_they_stop
    containers_that_start_at_once_have_addresses_of_one_endpoint_each
    addresses_that_are_asked_for_are_given
    network_that_is_made_again_without_encryption_is_another_one
    what_cannot_be_had_is_refused_where_docker_looks_for_it
    network_with_a_gateway_is_the_way_out
    live_container_that_the_agent_cannot_look_into_is_told_and_kept
    interface_that_docker_took_out_without_a_word_is_not_put_back
    ; soak:
    all_is_equal_whenever_the_agents_of_busy_dockers_are_killed
}

fn swarm() -> Swarm {
    let swarm = Swarm::idle(2, Underlay::default());
    for agent in &swarm.agents {
        start(&swarm, agent);
    }
    let init = swarm.init(Family::V4);
    swarm.join(2, &init);
    swarm.create(&["--encrypted", "--subnet", SUBNETS[0], "--subnet", SUBNETS[1], "red"]);
    swarm
}

fn reaches(from: &Container, to: IpAddr) -> bool {
    let once = Ping { count: 1, timeout: Duration::from_millis(500), ..Ping::default() };
    eventually(Duration::from_secs(10), || once.run(from.namespace(), to).unwrap().is_complete())
}

fn containers_reach_one_another_and_keep_nothing_when_they_stop() {
    let swarm = swarm();
    let dockers = [1, 2].map(|number| Docker::new(&swarm, number));
    let activated = dockers[0].exchange("Plugin.Activate", "");
    let drivers: Value = serde_json::from_str(&activated.1).unwrap();
    assert_eq!(drivers["Implements"], json!(["NetworkDriver", "IpamDriver"]));
    assert_eq!(dockers[0].exchange("NetworkDriver.GwAllocCheck", "{}").0, 404);

    let docker = &dockers[0];
    let container = docker.create_network().container("c1");
    let addresses = docker.take_addresses(["", ""]);
    let (endpoint, given) = docker.create_endpoint(&addresses, "");
    let v4 = addresses[0].addr().to_string().parse::<std::net::Ipv4Addr>().unwrap().octets();
    let mac = format!("02:42:{:02x}:{:02x}:{:02x}:{:02x}", v4[0], v4[1], v4[2], v4[3]);
    assert_eq!(given, json!({ "MacAddress": mac }), "what it has is not repeated");
    assert_eq!(docker.at_home(), []);
    let ifname = docker.join(&endpoint, &container);
    assert_eq!(docker.at_home(), [(ifname.clone(), false, 0)], "it carries nothing of the host");
    let first = Started { endpoint, addresses, ifname };
    docker.move_in(&first, &container);
    let other = dockers[1].create_network().container("c2");
    let second = dockers[1].run(&other);
    for (from, to) in [(&container, &second), (&other, &first)] {
        assert!(to.addresses.iter().all(|to| reaches(from, to.addr())), "{}", swarm.drops());
    }
    dockers.iter().for_each(Docker::await_equal);
    let verification = docker.agent().verification();
    assert!(verification.contains(&format!("{} eth0", container.path().display())), "{verification}");

    docker.done("NetworkDriver.Leave", &docker.of(&first.endpoint));
    let once = Ping { count: 1, timeout: Duration::from_millis(500), ..Ping::default() };
    assert!(!once.run(other.namespace(), first.addresses[0].addr()).unwrap().is_complete());
    docker.move_out(&first, &container);
    docker.await_equal();
    assert_eq!(docker.at_home(), [(first.ifname.clone(), false, 0)]);
    for _ in 0..2 {
        docker.done("NetworkDriver.DeleteEndpoint", &docker.of(&first.endpoint));
        docker.release(&first);
    }
    assert_eq!((docker.at_home(), docker.endpoints_in_cluster()), (Vec::new(), 1));
    for _ in 0..2 {
        docker.done("NetworkDriver.DeleteNetwork", &json!({ "NetworkID": docker.network }));
    }
    let refused = docker.refused(
        "NetworkDriver.CreateEndpoint",
        &json!({ "NetworkID": docker.network, "EndpointID": "e", "Interface": null, "Options": null }),
    );
    assert!(refused.contains("remove it and create it again"), "{refused}");
}

fn agent_that_is_killed_between_two_calls_goes_on_with_what_it_holds() {
    let swarm = swarm();
    let (docker, peer) = (Docker::new(&swarm, 2), Docker::new(&swarm, 1));
    let other = peer.create_network().container("other");
    let there = peer.run(&other);
    docker.create_network();
    for moment in 0..7 {
        let container = docker.container(&format!("c{moment}"));
        let killed_at = |step| {
            if step == moment {
                docker.agent().kill();
                start(&swarm, docker.agent());
            }
        };
        killed_at(0);
        let addresses = docker.take_addresses(["", ""]);
        killed_at(1);
        let (endpoint, _) = docker.create_endpoint(&addresses, "");
        killed_at(2);
        let ifname = docker.join(&endpoint, &container);
        let started = Started { endpoint, addresses, ifname };
        killed_at(3);
        docker.move_in(&started, &container);
        if moment == 5 {
            docker.await_equal();
        }
        killed_at(4);
        killed_at(5);
        assert!(reaches(&container, there.addresses[0].addr()), "{moment}: {}", swarm.drops());
        assert!(reaches(&other, started.addresses[1].addr()), "{moment}: {}", swarm.drops());
        docker.await_equal();
        docker.done("NetworkDriver.Leave", &docker.of(&started.endpoint));
        docker.move_out(&started, &container);
        killed_at(6);
        docker.done("NetworkDriver.DeleteEndpoint", &docker.of(&started.endpoint));
        docker.release(&started);
        assert_eq!(docker.at_home(), [], "{moment}");
        // With no session yet, the manager hears of it with the next one.
        assert!(eventually(Duration::from_secs(10), || docker.endpoints_in_cluster() == 1), "{moment}");
    }
}

fn containers_that_start_at_once_have_addresses_of_one_endpoint_each() {
    let swarm = swarm();
    let docker = Docker::new(&swarm, 2);
    docker.create_network();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let addresses = docker.take_addresses(["", ""]);
                docker.create_endpoint(&addresses, "");
            });
        }
    });
    assert_eq!(docker.endpoints_in_cluster(), 8);
    // One that failed in between keeps nobody waiting for long, and goes when Docker takes it back.
    let half = json!({ "PoolID": docker.pool(SUBNETS[0]), "Address": "", "Options": {} });
    let half = docker.done("IpamDriver.RequestAddress", &half)["Address"].clone();
    let begun = boot_time();
    docker.take_addresses(["", ""]);
    let waited = boot_time().since(begun);
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    assert_eq!(docker.endpoints_in_cluster(), 10);
    let half: IpNet = serde_json::from_value(half).unwrap();
    let pool = docker.pool(SUBNETS[0]);
    docker.done("IpamDriver.ReleaseAddress", &json!({ "PoolID": pool, "Address": half.addr() }));
    assert_eq!(docker.endpoints_in_cluster(), 9);
}

fn addresses_that_are_asked_for_are_given() {
    let swarm = swarm();
    let docker = Docker::new(&swarm, 2);
    docker.create_network();
    let addresses = docker.take_addresses(["10.1.0.50", "fd00:1::50"]);
    assert_eq!(
        addresses.iter().map(IpNet::addr).collect::<Vec<_>>(),
        ["10.1.0.50".parse::<IpAddr>().unwrap(), "fd00:1::50".parse().unwrap()]
    );
    let (_, given) = docker.create_endpoint(&addresses, "02:00:00:00:00:50");
    assert_eq!(given, json!({}));
    let known = swarm.agent(1).inspect("red").endpoints;
    assert_eq!((known.len(), &known[0].addresses), (1, &addresses));
    assert_eq!(known[0].mac.to_string(), "02:00:00:00:00:50");
    let taken = json!({ "PoolID": docker.pool(SUBNETS[0]), "Address": "10.1.0.50", "Options": {} });
    let refused = docker.refused("IpamDriver.RequestAddress", &taken);
    assert!(refused.contains("10.1.0.50 is taken in network red"), "{refused}");
}

fn what_cannot_be_had_is_refused_where_docker_looks_for_it() {
    let swarm = swarm();
    let docker = Docker::new(&swarm, 1);
    swarm.create(&["--subnet", "10.7.0.0/24", "--subnet", "10.8.0.0/24", "two"]);
    swarm.create(&["--subnet", "10.9.0.0/24", "open"]);
    let pool = |options: Value, pool: &str, range: &str| {
        docker.refused(
            "IpamDriver.RequestPool",
            &json!({ "Pool": pool, "SubPool": range, "Options": options, "V6": false }),
        )
    };
    for (said, expected) in [
        (pool(Value::Null, "", ""), "--ipam-opt network=NAME"),
        (pool(json!({ "net": "red" }), "", ""), "--ipam-opt net is not known"),
        (pool(json!({ "network": "blue" }), "", ""), "there is no network blue"),
        (pool(json!({ "network": "two" }), "", ""), "several subnets of IPv4"),
        (
            pool(json!({ "network": "red" }), "10.2.0.0/24", ""),
            "network red has 10.1.0.0/24, not 10.2.0.0/24",
        ),
        (
            pool(json!({ "network": "red" }), "10.1.0.0/24", "10.1.0.64/26"),
            "leave --ip-range 10.1.0.64/26 out",
        ),
        (pool(Value::Null, "10.3.0.0/24", ""), "no network has subnet 10.3.0.0/24"),
        (pool(Value::Null, "10.10.0.0", ""), "not understood"),
    ] {
        assert!(said.contains(expected), "{said}");
    }
    let create = |options: Value, pools: [Value; 2]| {
        let [v4, v6] = pools;
        docker.refused(
            "NetworkDriver.CreateNetwork",
            &json!({
                "NetworkID": "n", "Options": { "com.docker.network.generic": options },
                "IPv4Data": v4, "IPv6Data": v6,
            }),
        )
    };
    let v4 = |pool: &str| json!([{ "AddressSpace": "overlayd", "Pool": pool }]);
    for (said, expected) in [
        (create(json!({ "encrypted": "" }), [v4("10.9.0.0/24"), Value::Null]), "open is not encrypted"),
        (create(json!({ "encrypted": "false" }), [v4(SUBNETS[0]), v4(SUBNETS[1])]), "red is encrypted"),
        (create(json!({ "encrypted": "maybe" }), [v4("10.9.0.0/24"), Value::Null]), "it is true or false"),
        (
            create(
                json!({}),
                [json!([{ "AddressSpace": "LocalDefault", "Pool": "10.9.0.0/24" }]), Value::Null],
            ),
            "add --ipam-driver",
        ),
        (create(json!({ "mtu": "1300" }), [v4("10.9.0.0/24"), Value::Null]), "--opt mtu is not known"),
        (create(json!({}), [v4(SUBNETS[0]), Value::Null]), "add --ipv6 --subnet fd00:1::/64"),
        (create(json!({}), [v4("10.9.0.0/24"), v4("10.8.0.0/24")]), "is no subnet of network open"),
        (
            create(
                json!({}),
                [
                    json!([{ "AddressSpace": "overlayd", "Pool": "10.9.0.0/24", "AuxAddresses": { "nas": "10.9.0.7" } }]),
                    Value::Null,
                ],
            ),
            "leave --aux-address nas out",
        ),
    ] {
        assert!(said.contains(expected), "{said}");
    }
    let open = docker.agent().inspect("open").network.id;
    let gateway = json!({
        "PoolID": format!("{open}/10.9.0.0/24"), "Address": "10.9.0.5",
        "Options": { "RequestAddressType": "com.docker.network.gateway" },
    });
    let said = docker.refused("IpamDriver.RequestAddress", &gateway);
    assert!(said.contains("10.9.0.5 is not the gateway of network open"), "{said}");
    let said = docker.refused("IpamDriver.RequestAddress", &json!({ "PoolID": "open", "Address": "" }));
    assert!(said.contains("no pool of overlayd's"), "{said}");
    let mut join = docker.of("e");
    join["SandboxKey"] = json!("/run/docker/netns/1");
    let said = docker.refused("NetworkDriver.Join", &join);
    assert!(said.contains("no endpoint e of Docker's"), "{said}");
    assert_eq!(docker.agent().inspect("red").endpoints.len(), 0);
}

fn network_that_is_made_again_without_encryption_is_another_one() {
    let swarm = swarm();
    let docker = Docker::new(&swarm, 2);
    docker.create_network();
    swarm.agent(1).done(&["rm", "red"]);
    swarm.create(&["--subnet", SUBNETS[0], "--subnet", SUBNETS[1], "red"]);
    let request = json!({ "PoolID": docker.pool(SUBNETS[0]), "Address": "", "Options": {} });
    let said = docker.refused("IpamDriver.RequestAddress", &request);
    assert!(said.contains(&format!("no network {}", docker.red)), "{said}");
    let mut request = docker.of("e");
    request["Interface"] = json!({ "Address": "10.1.0.7/24", "AddressIPv6": "fd00:1::7/64" });
    let said = docker.refused("NetworkDriver.CreateEndpoint", &request);
    assert!(said.contains(&format!("no network {}", docker.red)), "{said}");
    assert_eq!(docker.endpoints_in_cluster(), 0);
}

fn network_with_a_gateway_is_the_way_out() {
    let swarm = swarm();
    swarm.create(&["--encrypted", "--subnet", "10.9.0.0/24", "--gateway", "10.9.0.254", "gated"]);
    let docker = Docker::new(&swarm, 1);
    let pool = docker.done("IpamDriver.RequestPool", &json!({ "Options": { "network": "gated" } }));
    assert_eq!(pool["Data"]["com.docker.network.gateway"], "10.9.0.254/24");
    docker.done(
        "NetworkDriver.CreateNetwork",
        &json!({ "NetworkID": docker.network, "IPv4Data": [{ "AddressSpace": "overlayd", "Pool": pool["Pool"] }], "IPv6Data": [] }),
    );
    let given = docker.done("IpamDriver.RequestAddress", &json!({ "PoolID": pool["PoolID"] }));
    let mut request = docker.of("e");
    request["Interface"] = json!({ "Address": given["Address"] });
    docker.done("NetworkDriver.CreateEndpoint", &request);
    let container = docker.container("c1");
    request["SandboxKey"] = json!(container.path());
    let joined = docker.done("NetworkDriver.Join", &request);
    assert_eq!(joined["Gateway"], "10.9.0.254", "{joined}");
    let port = json!([{ "Proto": 6, "Port": 80, "HostPort": 8080 }]);
    request["Options"] = json!({ "com.docker.network.portmap": port });
    let said = docker.refused("NetworkDriver.ProgramExternalConnectivity", &request);
    assert!(said.contains("leave -p out"), "{said}");
    request["Options"] = json!({ "com.docker.network.portmap": [] });
    docker.done("NetworkDriver.ProgramExternalConnectivity", &request);
}

fn live_container_that_the_agent_cannot_look_into_is_told_and_kept() {
    let swarm = swarm();
    let docker = Docker::new(&swarm, 1);
    let container = docker.create_network().container("c1");
    let addresses = docker.take_addresses(["", ""]);
    let (endpoint, _) = docker.create_endpoint(&addresses, "");
    let mut request = docker.of(&endpoint);
    // As where Docker's mounts do not reach the agent.
    request["SandboxKey"] = json!("/run/netns/is-seen-by-docker-alone");
    let joined = docker.done("NetworkDriver.Join", &request);
    let ifname = joined["InterfaceName"]["SrcName"].as_str().unwrap().to_owned();
    let started = Started { endpoint, addresses, ifname };
    docker.move_in(&started, &container);
    let is_told = || docker.agent().done(&["status"]).contains("has to see the mounts of Docker");
    assert!(eventually(Duration::from_secs(20), is_told), "{}", docker.agent().done(&["status"]));
    docker.agent().kill();
    start(&swarm, docker.agent());
    assert_eq!(docker.endpoints_in_cluster(), 1);
    docker.done("NetworkDriver.Leave", &docker.of(&started.endpoint));
    docker.move_out(&started, &container);
    docker.done("NetworkDriver.DeleteEndpoint", &docker.of(&started.endpoint));
    docker.await_equal();
    assert_eq!((docker.at_home(), docker.endpoints_in_cluster()), (Vec::new(), 0));
}

/// As when the agent is away, or locked, when Docker disconnects a container that lives on.
fn interface_that_docker_took_out_without_a_word_is_not_put_back() {
    let swarm = swarm();
    let docker = Docker::new(&swarm, 2);
    docker.create_network();
    for is_away in [false, true] {
        let container = docker.container(if is_away { "c1" } else { "c2" });
        let started = docker.run(&container);
        docker.await_equal();
        let mut at_home = docker.host().spawn({
            let mut sleep = Command::new("sleep");
            sleep.arg("60");
            sleep
        });
        let home = at_home.as_ref().unwrap().id().to_string();
        if is_away {
            docker.agent().kill();
        }
        docker.move_to(&home, &started, &container);
        if is_away {
            start(&swarm, docker.agent());
        }
        let is_held = || docker.agent().verification().contains("held for a container of Docker");
        assert!(eventually(Duration::from_secs(10), is_held), "{}", docker.agent().verification());
        assert_eq!(docker.at_home(), [(started.ifname.clone(), false, 0)]);
        let names =
            container.run_in(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
        assert!(!names.contains("eth0"), "{names}");
        docker.done("NetworkDriver.DeleteEndpoint", &docker.of(&started.endpoint));
        assert_eq!(docker.at_home(), []);
        assert!(eventually(Duration::from_secs(10), || docker.endpoints_in_cluster() == 0));
        at_home.as_mut().unwrap().kill().unwrap();
        at_home.unwrap().wait().unwrap();
    }
}

fn all_is_equal_whenever_the_agents_of_busy_dockers_are_killed() {
    (0..20).for_each(live);
}

/// Containers of Docker's start and stop on both hosts, while one agent after the other is killed.
fn live(seed: u64) {
    let swarm = swarm();
    let dockers = [1, 2].map(|number| Docker::new(&swarm, number));
    let mut at_home = [1, 2].map(|number| {
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        swarm.lab.host(number).spawn(sleep).unwrap()
    });
    let homes = [0, 1].map(|index| at_home[index].id().to_string());
    let is_over = AtomicBool::new(false);
    let mut running = std::thread::scope(|scope| {
        let busy = [0, 1].map(|index| {
            let (docker, home) = (dockers[index].create_network(), &homes[index]);
            scope.spawn(move || busy(docker, home, seed * 2 + index as u64))
        });
        let killer = scope.spawn(|| {
            let mut rng = StdRng::seed_from_u64(!seed);
            let mut kills = 0;
            while !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(rng.random_range(0..700)));
                let agent = swarm.agent(rng.random_range(1..=2));
                agent.kill();
                start(&swarm, agent);
                kills += 1;
            }
            kills
        });
        let running = busy.map(|busy| busy.join());
        is_over.store(true, Ordering::Relaxed);
        tell(&format!("seed {seed}: {} kills", killer.join().unwrap()));
        running.map(Result::unwrap)
    });
    dockers.iter().for_each(Docker::await_equal);
    for (from, to) in [(0, 1), (1, 0)] {
        for ((container, _), (_, to)) in running[from].iter().zip(&running[to]) {
            assert!(to.addresses.iter().all(|to| reaches(container, to.addr())), "{}", swarm.drops());
        }
    }
    // What was asked for twice, as the first answer did not come, waits for Docker still.
    let held = || -> usize {
        let told =
            |docker: &Docker<'_>| docker.agent().verification().matches("held for a container").count();
        dockers.iter().map(told).sum()
    };
    let alive: usize = running.iter().map(Vec::len).sum();
    let are_known = |alive| {
        let are_known = || dockers[0].endpoints_in_cluster() == alive + held();
        assert!(
            eventually(Duration::from_secs(10), are_known),
            "seed {seed}: {alive} + {}: {:?}",
            held(),
            dockers[0].agent().inspect("red")
        );
    };
    are_known(alive);
    for index in [0, 1] {
        for (container, started) in running[index].drain(..) {
            dockers[index].stop(&started, &container, &homes[index]);
        }
    }
    dockers.iter().for_each(Docker::await_equal);
    assert!(dockers.iter().all(|docker| docker.at_home().is_empty()), "seed {seed}");
    are_known(0);
    tell(&format!("seed {seed}: {alive} containers at the end, {} held for nobody", held()));
    for sleep in &mut at_home {
        sleep.kill().unwrap();
        sleep.wait().unwrap();
    }
}

/// Starts and stops containers, some of which run at the end.
fn busy(docker: &Docker<'_>, home: &str, seed: u64) -> Vec<(Container, Started)> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut running: Vec<(Container, Started)> = Vec::new();
    for step in 0..12 {
        if !running.is_empty() && rng.random_bool(0.4) {
            let (container, started) = running.swap_remove(rng.random_range(0..running.len()));
            docker.stop(&started, &container, home);
            continue;
        }
        let container = docker.container(&format!("h{}-{step}", docker.number));
        match docker.try_run(&container) {
            Ok(started) => running.push((container, started)),
            Err(refused) => tell(&format!("host {}, step {step}: {refused}", docker.number)),
        }
    }
    running
}
