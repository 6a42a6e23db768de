//! The kernel as `io` and `lab` use it: real TAPs, sockets and namespaces, as root or as fake root.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use overlayd::id::{IfName, LaneCount, MacAddr, Vni};
use overlayd::io::container_port::{ContainerPort, PortError, TapQueue};
use overlayd::io::epoll::{Epoll, ReadyList};
use overlayd::io::netlink::{Netlink, NetlinkError, Vxlan};
use overlayd::io::netns::NetNs;
use overlayd::io::packet::PacketSocket;
use overlayd::io::tap::{Tap, TapError, is_gone};
use overlayd::io::udp::{RecvRing, UdpOptions, UdpSocket};
use overlayd::lab::{Container, Host, Lab, Ping, Underlay, eventually, tcp_throughput, udp_blast};
use overlayd::wire::vnet_hdr::VnetHeader;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(HOLD) {
        hold_a_laboratory();
    }
    let mut arguments = Arguments::from_args();
    // One laboratory at a time; its namespaces have names.
    arguments.test_threads = Some(1);
    if !arguments.list
        && let Err(error) = Lab::enter()
    {
        #[expect(clippy::print_stderr, reason = "there is no test yet that could fail with it")]
        {
            eprintln!("the laboratory cannot be built here: {error}");
        }
        return ExitCode::FAILURE;
    }
    libtest_mimic::run(&arguments, trials()).exit_code()
}

fn trials() -> Vec<Trial> {
    macro_rules! trials {
        ($($test:ident)*) => { vec![$(Trial::test(stringify!($test), || { $test(); Ok::<(), Failed>(()) })),*] };
    }
    trials! {
        container_interface_is_ready_when_it_is_made
        container_pings_through_frames_that_we_read_and_write
        taken_interface_name_is_refused_and_nothing_is_left_behind
        failed_configuration_leaves_nothing_behind
        persistent_tap_outlives_its_process_and_is_opened_again
        deleted_device_is_told_to_its_readers
        end_of_the_container_is_told_to_the_readers_of_its_tap
        reopened_tap_keeps_the_namespace_but_its_path_tells
        tap_errors_name_their_cause
        tap_of_an_interface_that_is_down_loses_frames_without_an_error
        segmented_run_crosses_the_wire_as_datagrams_that_must_not_be_fragmented
        run_crosses_in_one_piece_and_keeps_its_boundaries
        refused_offload_gives_the_same_datagrams
        datagram_above_the_mtu_is_refused_and_segmentation_kept
        forged_icmp_does_not_shrink_the_path
        kernel_vxlan_devices_reach_each_other
        interface_that_holds_an_address_is_found_with_its_mtu
        raw_frames_are_sent_and_seen
        two_hosts_ping_each_other
        five_hosts_ping_each_other_through_the_switch
        unreachable_host_is_reported_as_lost_pings
        measured_traffic_arrives
        changed_mac_is_used_with_a_permanent_neighbor
        children_live_in_their_host_and_die_with_the_laboratory
        killed_laboratory_takes_its_children_along
    }
}

fn container_interface_is_ready_when_it_is_made() {
    let (_lab, container, _tap) = container_with_port();
    container
        .run_in(|| {
            let netlink = Netlink::here().unwrap();
            let link = netlink.link(&eth0()).unwrap();
            assert_eq!(link.mac, Some(port().mac));
            assert_eq!((link.mtu, link.up, link.carrier), (1408, true, true));
            assert_eq!(link.kind.as_deref(), Some("tun"));
            assert_eq!(link.alias.as_deref(), Some("overlayd blue"));
            let mut addresses: Vec<_> = netlink.addresses().unwrap();
            addresses.retain(|held| held.link.name == "eth0");
            let mut addresses: Vec<_> = addresses.iter().map(|held| held.address.to_string()).collect();
            addresses.sort();
            assert_eq!(addresses, ["10.1.0.2/24", "fd00:1::2/64", "fe80::42:aff:fe01:2/64"]);
            for (far, near) in [("203.0.113.9:9", "10.1.0.2"), ("[2001:db8:9::9]:9", "fd00:1::2")] {
                let socket =
                    std::net::UdpSocket::bind(if far.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" });
                let socket = socket.unwrap();
                socket.connect(far).expect("there is a default route");
                assert_eq!(socket.local_addr().unwrap().ip().to_string(), near);
            }
        })
        .unwrap();
}

fn container_pings_through_frames_that_we_read_and_write() {
    let (_lab, container, tap) = container_with_port();
    let ping = Ping { count: 3, interval: Duration::ZERO, ..Ping::default() };
    let report = std::thread::scope(|scope| {
        let ping = scope.spawn(|| ping.run(container.namespace(), "10.1.0.1".parse().unwrap()).unwrap());
        let mut frame = [0; 2048];
        eventually(Duration::from_secs(5), || {
            while let Some((_, length)) = tap.read_frame(&mut frame, &mut []).unwrap() {
                if let Some(answer) = answer(&frame[..length]) {
                    assert!(tap.write_frame(&VnetHeader::COMPLETE, &[&answer]).unwrap());
                }
            }
            ping.is_finished()
        });
        ping.join().unwrap()
    });
    assert!(report.is_complete(), "{report:?}");
}

fn taken_interface_name_is_refused_and_nothing_is_left_behind() {
    let (_lab, container, _tap) = container_with_port();
    let here = Netlink::here().unwrap();
    let before = (here.links().unwrap().len(), links_of(&container));
    let refused = port().create(container.namespace(), LaneCount::ONE).unwrap_err();
    assert!(matches!(refused, PortError::NameTaken { .. }), "{refused}");
    assert_eq!((here.links().unwrap().len(), links_of(&container)), before);
}

fn failed_configuration_leaves_nothing_behind() {
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    let container = lab.host(1).container("blue").unwrap();
    let here = Netlink::here().unwrap();
    let before = here.links().unwrap().len();
    for broken in [
        ContainerPort { gateways: vec!["198.51.100.1".parse().unwrap()], ..port() },
        ContainerPort { mtu: 10_000_000, ..port() },
        ContainerPort { mac: MacAddr::BROADCAST, ..port() },
    ] {
        broken.create(container.namespace(), LANES).unwrap_err();
        assert_eq!(here.links().unwrap().len(), before);
        assert_eq!(links_of(&container), ["lo"]);
    }
    assert_eq!(port().create(container.namespace(), LANES).unwrap().len(), 3);
}

fn persistent_tap_outlives_its_process_and_is_opened_again() {
    let (_lab, container, queues) = container_with_queues();
    drop(queues);
    assert_eq!(links_of(&container), ["eth0", "lo"]);
    // Whatever number of lanes the next process has.
    for lanes in [LaneCount::ONE, LaneCount::clamped(5), LANES] {
        let queues = ContainerPort::reopen(&eth0(), container.namespace(), lanes).unwrap();
        assert_eq!(queues.len(), usize::from(lanes.get()));
        for queue in &queues {
            assert_eq!(queue.name().unwrap(), eth0());
            assert!(arp_is_answered(queue, &queues));
        }
    }

    ContainerPort::remove(&eth0(), container.namespace()).unwrap();
    ContainerPort::remove(&eth0(), container.namespace()).expect("it is gone already, which is fine");
    assert_eq!(links_of(&container), ["lo"]);
}

fn deleted_device_is_told_to_its_readers() {
    let (_lab, container, queues) = container_with_queues();
    let epolls = queues.iter().map(|tap| {
        let epoll = Epoll::new().unwrap();
        epoll.add(tap, 1).unwrap();
        epoll
    });
    let epolls: Vec<_> = epolls.collect();
    Netlink::within(container.namespace(), |netlink| netlink.delete(&netlink.link(&eth0())?)).unwrap();
    queues.iter().for_each(assert_gone);
    for epoll in epolls {
        let mut ready = ReadyList::with_capacity(1);
        epoll.wait(&mut ready, Some(Duration::from_secs(1))).unwrap();
        assert!(ready.iter().any(|ready| ready.failed), "epoll says nothing of a device that is gone");
    }
}

fn end_of_the_container_is_told_to_the_readers_of_its_tap() {
    let (_lab, container, queues) = container_with_queues();
    drop(container);
    queues.iter().for_each(assert_gone);
}

fn reopened_tap_keeps_the_namespace_but_its_path_tells() {
    let (_lab, container, queues) = container_with_queues();
    drop(queues);
    let queues = ContainerPort::reopen(&eth0(), container.namespace(), LANES).unwrap();
    let (path, namespace) = (container.path(), NetNs::open(&container.path()).unwrap());
    assert!(namespace.is_at(&path));
    drop(container);
    assert!(!namespace.is_at(&path));
    drop(namespace);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(queues[0].name().expect("its namespace lives on"), eth0());
    ContainerPort::remove_at(&eth0(), &path).expect("there is nothing to remove at the path");
}

fn tap_errors_name_their_cause() {
    let name = if_name("tap-test");
    assert!(matches!(Tap::open(&name), Err(TapError::NoSuchInterface { .. })));
    let tap = Tap::create(&name).unwrap();
    assert!(matches!(Tap::create(&name), Err(TapError::Taken { .. })));
    let second = Tap::open(&name).expect("a second queue");
    drop((tap, second));
    assert!(matches!(Tap::open(&name), Err(TapError::NoSuchInterface { .. })), "it was not persistent");

    assert!(matches!(Tap::open(&if_name("lo")), Err(TapError::NotSuchTap { .. })));
}

fn tap_of_an_interface_that_is_down_loses_frames_without_an_error() {
    let (_lab, container, tap) = container_with_port();
    Netlink::within(container.namespace(), |netlink| netlink.set_up(&netlink.link(&eth0())?, false)).unwrap();
    assert!(!tap.write_frame(&VnetHeader::COMPLETE, &[&arp_request()]).unwrap());
    // What was queued before may still be read; afterwards there is nothing, and no error.
    let mut frame = [0; 2048];
    while tap.read_frame(&mut frame, &mut []).unwrap().is_some() {}
}

fn segmented_run_crosses_the_wire_as_datagrams_that_must_not_be_fragmented() {
    let lab = Lab::two_hosts(Underlay { segment_offload: false, ..Underlay::default() }).unwrap();
    for (from, to) in [(lab.host(1).v4(), lab.host(2).v4()), (lab.host(1).v6(), lab.host(2).v6())] {
        let capture = lab.host(2).capture().unwrap();
        transfer(&lab, from, to, &UdpOptions::default(), &UdpOptions::default(), 1_400);
        let frames = capture.stop().unwrap();
        let datagrams: Vec<_> = frames.iter().filter(|frame| frame.len() > 1_000).collect();
        assert_eq!(datagrams.len(), RUN_BYTES.div_ceil(1_400) - 1, "and a short last one");
        for datagram in datagrams {
            assert!(datagram.len() <= 1_514, "{} bytes are no frame of this wire", datagram.len());
            match datagram[12..14] {
                [0x08, 0x00] => assert_eq!(datagram[20..22], [0x40, 0], "DF, and no fragment"),
                [0x86, 0xdd] => assert_eq!(datagram[20], 17, "no fragment header"),
                ref other => panic!("ethertype {other:02x?}"),
            }
        }
    }
}

fn run_crosses_in_one_piece_and_keeps_its_boundaries() {
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    for (from, to) in [(lab.host(1).v4(), lab.host(2).v4()), (lab.host(1).v6(), lab.host(2).v6())] {
        let messages = transfer(&lab, from, to, &UdpOptions::default(), &UdpOptions::default(), 1_400);
        assert_eq!(messages, 1, "UDP_SEGMENT and UDP_GRO make one message of a run");
    }
}

fn refused_offload_gives_the_same_datagrams() {
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    let (from, to) = (lab.host(1).v4(), lab.host(2).v4());
    let plain = UdpOptions { segmentation: false, coalescing: false, ..UdpOptions::default() };
    // The kernel refuses UDP_SEGMENT without a checksum.
    let refused = UdpOptions { checksum: false, ..UdpOptions::default() };
    for sender in [&plain, &refused] {
        for receiver in [&plain, &UdpOptions::default()] {
            transfer(&lab, from, to, sender, receiver, 1_400);
        }
    }
}

fn datagram_above_the_mtu_is_refused_and_segmentation_kept() {
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    for to in [lab.host(2).v4(), lab.host(2).v6()] {
        let local: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        let socket = lab.host(1).run_in(|| UdpSocket::bind(local, &UdpOptions::default())).unwrap().unwrap();
        let error = socket.send_run(SocketAddr::new(to, 4500), &[0; 4_000], 1_480).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(EMSGSIZE), "{error}");
        assert!(socket.offloads().segmentation);
    }
}

fn forged_icmp_does_not_shrink_the_path() {
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    let (victim, forger) = (lab.host(1), lab.host(2));
    assert!(Ping::default().run(forger.namespace(), victim.v4()).unwrap().is_complete());
    let to = SocketAddr::new(forger.v4(), 4500);
    let local = SocketAddr::new(victim.v4(), 4500);
    let socket = victim.run_in(|| UdpSocket::bind(local, &UdpOptions::default())).unwrap().unwrap();
    let path_mtu = || {
        victim.run_in(|| {
            let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            probe.connect(to).unwrap();
            rustix::net::sockopt::ip_mtu(&probe).unwrap()
        })
    };
    assert_eq!(path_mtu().unwrap(), 1_500);
    assert_eq!(socket.send_run(to, &[0; 1_400], 1_400).unwrap().datagrams, 1);

    let mac = |host: &Host| {
        Netlink::within(host.namespace(), |netlink| netlink.link(&eth0())).map(|link| (link.index, link.mac))
    };
    let ((_, victim_mac), (index, forger_mac)) = (mac(victim).unwrap(), mac(forger).unwrap());
    let mut frame = [victim_mac.unwrap().octets(), forger_mac.unwrap().octets()].concat();
    frame.extend([0x08, 0x00]);
    frame.extend(ipv4_header(56, 1, [192, 0, 2, 2], [192, 0, 2, 1]));
    // Fragmentation needed, next-hop MTU 576, about a datagram of the socket.
    let mut icmp = vec![3, 4, 0, 0, 0, 0, 0x02, 0x40];
    icmp.extend(ipv4_header(1_428, 17, [192, 0, 2, 1], [192, 0, 2, 2]));
    icmp.extend([0x11, 0x94, 0x11, 0x94, 0x05, 0x80, 0, 0]);
    let checksum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&checksum);
    frame.extend(icmp);
    forger.run_in(|| PacketSocket::open(index).unwrap().send(&frame).unwrap()).unwrap();

    let believed = eventually(Duration::from_secs(2), || path_mtu().unwrap() == 576);
    assert!(believed, "the kernel did not take the forgery, so this test shows nothing");
    assert_eq!(socket.send_run(to, &[0; 1_400], 1_400).unwrap().datagrams, 1);
    assert_eq!(socket.send_run(to, &[0; 4_200], 1_400).unwrap().datagrams, 3);
}

fn kernel_vxlan_devices_reach_each_other() {
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    let name = if_name("vxlan42");
    for (near, far, address) in
        [(lab.host(1), lab.host(2), "10.42.0.1/24"), (lab.host(2), lab.host(1), "10.42.0.2/24")]
    {
        Netlink::within(near.namespace(), |netlink| {
            let vni = Vni::new(42).unwrap();
            netlink.add_vxlan(&Vxlan { name: &name, vni, local: near.v4(), port: 4789 })?;
            let link = netlink.link(&name)?;
            netlink.add_vxlan_remote(&link, MacAddr::new([0; 6]), far.v4())?;
            netlink.configure(&link, &[address.parse().unwrap()], &[])
        })
        .unwrap();
    }
    let report = Ping::default().run(lab.host(1).namespace(), "10.42.0.2".parse().unwrap()).unwrap();
    assert!(report.is_complete(), "{report:?}");
}

fn interface_that_holds_an_address_is_found_with_its_mtu() {
    let lab = Lab::two_hosts(Underlay { mtu: 9_000, ..Underlay::default() }).unwrap();
    let host = lab.host(1);
    Netlink::within(host.namespace(), |netlink| {
        for address in [host.v4(), host.v6()] {
            let link = netlink.holder_of(address)?;
            assert_eq!((link.name.as_str(), link.mtu, link.kind.as_deref()), ("eth0", 9_000, Some("veth")));
        }
        let nobody = netlink.holder_of(lab.host(2).v4()).unwrap_err();
        assert!(matches!(nobody, NetlinkError::NobodyHas { .. }), "{nobody}");
        let again = netlink.add_bridge(&Host::underlay_name()).unwrap_err();
        assert!(again.is_exists(), "{again}");
        Ok(())
    })
    .unwrap();
}

fn raw_frames_are_sent_and_seen() {
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    let capture = lab.host(2).capture().unwrap();
    let frame = [[0xff; 14].as_slice(), b"a frame that nobody understands"].concat();
    let index = Netlink::within(lab.host(1).namespace(), |netlink| netlink.link(&eth0())).unwrap().index;
    lab.host(1).run_in(|| PacketSocket::open(index).unwrap().send(&frame).unwrap()).unwrap();
    assert!(capture.stop().unwrap().contains(&frame));
}

fn two_hosts_ping_each_other() {
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    assert_all_ping(&lab);
}

fn five_hosts_ping_each_other_through_the_switch() {
    let lab = Lab::hosts(5, Underlay::default()).unwrap();
    assert_all_ping(&lab);
}

fn unreachable_host_is_reported_as_lost_pings() {
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    let ping = Ping { count: 2, timeout: Duration::from_millis(50), ..Ping::default() };
    for nobody in ["192.0.2.99", "2001:db8::99", "198.51.100.1"] {
        let report = ping.run(lab.host(1).namespace(), nobody.parse().unwrap()).unwrap();
        assert_eq!((report.sent, report.received()), (2, 0));
    }
}

fn measured_traffic_arrives() {
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    let (one, two) = (lab.host(1).namespace(), lab.host(2).namespace());
    for to in [lab.host(2).v4(), lab.host(2).v6()] {
        let report = tcp_throughput(one, two, to, Duration::from_millis(200)).unwrap();
        assert!(report.bits_per_second() > 1_000_000, "{report:?}");
        let report = udp_blast(one, two, to, b"a datagram", 100).unwrap();
        assert_eq!((report.sent, report.received), (100, 100));
    }
}

fn children_live_in_their_host_and_die_with_the_laboratory() {
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    let mut command = Command::new("readlink");
    command.arg("/proc/self/ns/net").stdout(std::process::Stdio::piped());
    let output = lab.host(2).spawn(command).unwrap().wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), lab.host(2).namespace().id().to_string());

    let mut command = Command::new("sleep");
    command.arg("60");
    let mut child = lab.host(1).spawn(command).unwrap();
    assert!(child.try_wait().unwrap().is_none());
    drop(lab);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

fn changed_mac_is_used_with_a_permanent_neighbor() {
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    let mac: MacAddr = "02:00:00:00:00:99".parse().unwrap();
    Netlink::within(lab.host(1).namespace(), |netlink| {
        netlink.set_mac(&netlink.link(&eth0())?, mac)?;
        assert_eq!(netlink.link(&eth0())?.mac, Some(mac));
        Ok(())
    })
    .unwrap();
    Netlink::within(lab.host(2).namespace(), |netlink| {
        netlink.add_neighbor(&netlink.link(&eth0())?, lab.host(1).v4(), mac)
    })
    .unwrap();
    let capture = lab.host(1).capture().unwrap();
    assert!(Ping::default().run(lab.host(2).namespace(), lab.host(1).v4()).unwrap().is_complete());
    let frames = capture.stop().unwrap();
    let asked = |frame: &Vec<u8>| {
        frame[12..14] == [0x08, 0x06] && frame[20..22] == [0, 1] && frame[38..42] == [192, 0, 2, 1]
    };
    assert!(!frames.iter().any(asked), "host2 asked for a neighbour that it was told");
    assert!(frames.iter().any(|frame| frame[..6] == mac.octets()));
}

fn killed_laboratory_takes_its_children_along() {
    let mut holder = Command::new(std::env::current_exe().unwrap());
    holder.arg(HOLD).stdout(std::process::Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    let mut child = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut child).unwrap();
    let status = PathBuf::from(format!("/proc/{}/stat", child.trim()));
    assert!(status.exists(), "the child runs");

    holder.kill().unwrap();
    holder.wait().unwrap();
    // A zombie waits for its new parent, which is none of ours.
    let ended = || std::fs::read_to_string(&status).map_or(true, |status| status.contains(") Z "));
    assert!(eventually(Duration::from_secs(5), ended), "process {child} lives on");
}

/// Another process's part of the test above: builds a laboratory, says who its child is, waits.
fn hold_a_laboratory() -> ! {
    Lab::enter().unwrap();
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    let mut command = Command::new("sleep");
    command.arg("60");
    let mut child = lab.host(1).spawn(command).unwrap();
    let mut told = std::io::stdout().lock();
    writeln!(told, "{}", child.id()).unwrap();
    child.wait().unwrap();
    std::process::exit(1)
}

fn container_with_port() -> (Lab, Container, Tap) {
    let (lab, container, mut queues) = container_for(LaneCount::ONE);
    (lab, container, queues.remove(0))
}

/// A container with an interface of several queues.
fn container_with_queues() -> (Lab, Container, Vec<Tap>) {
    container_for(LANES)
}

fn container_for(lanes: LaneCount) -> (Lab, Container, Vec<Tap>) {
    let lab = Lab::two_hosts(Underlay::default()).unwrap();
    let container = lab.host(1).container("blue").unwrap();
    // As an agent does it: from its host's namespace.
    let queues = lab.host(1).run_in(|| port().create(container.namespace(), lanes)).unwrap().unwrap();
    (lab, container, queues)
}

const LANES: LaneCount = LaneCount::new(3).expect("in range");

fn port() -> ContainerPort {
    ContainerPort {
        name: eth0(),
        mac: "02:42:0a:01:00:02".parse().unwrap(),
        mtu: 1408,
        addresses: vec!["10.1.0.2/24".parse().unwrap(), "fd00:1::2/64".parse().unwrap()],
        gateways: vec!["10.1.0.1".parse().unwrap(), "fd00:1::1".parse().unwrap()],
        queue: TapQueue::default(),
        alias: "overlayd blue".to_owned(),
    }
}

fn eth0() -> IfName {
    if_name("eth0")
}

fn if_name(name: &str) -> IfName {
    name.parse().unwrap()
}

fn links_of(container: &Container) -> Vec<String> {
    let links = Netlink::within(container.namespace(), Netlink::links).unwrap();
    let mut names: Vec<_> = links.into_iter().map(|link| link.name).collect();
    names.sort();
    names
}

fn assert_gone(tap: &Tap) {
    let mut frame = [0; 2048];
    let told = eventually(Duration::from_secs(5), || {
        loop {
            match tap.read_frame(&mut frame, &mut []) {
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(error) => return is_gone(&error),
            }
        }
    });
    assert!(told, "reading does not tell that the device is gone");
    assert!(is_gone(&tap.write_frame(&VnetHeader::COMPLETE, &[&arp_request()]).unwrap_err()));
}

fn assert_all_ping(lab: &Lab) {
    let ping = Ping { count: 2, interval: Duration::ZERO, ..Ping::default() };
    for from in lab.all() {
        for to in lab.all() {
            for address in [to.v4(), to.v6()] {
                let report = ping.run(from.namespace(), address).unwrap();
                assert!(report.is_complete(), "{} to {address}: {report:?}", from.name());
            }
        }
    }
}

/// Sends a run of 44,001 bytes and asserts that its datagrams arrive; the number of messages that
/// brought them.
fn transfer(
    lab: &Lab,
    from: IpAddr,
    to: IpAddr,
    sender: &UdpOptions,
    receiver: &UdpOptions,
    segment: u16,
) -> usize {
    let bind = |host: &Host, ip, options: &UdpOptions| {
        host.run_in(|| UdpSocket::bind(SocketAddr::new(ip, 0), options)).unwrap().unwrap()
    };
    let (sender, receiver) = (bind(lab.host(1), from, sender), bind(lab.host(2), to, receiver));
    let bytes: Vec<u8> = (0..u32::try_from(RUN_BYTES).unwrap()).map(|i| (i % 251).to_le_bytes()[0]).collect();
    let datagrams: Vec<_> = bytes.chunks(usize::from(segment)).map(<[u8]>::to_vec).collect();
    let outcome = sender.send_run(receiver.local_addr().unwrap(), &bytes, segment).unwrap();
    assert_eq!(outcome.datagrams, datagrams.len());

    let (mut ring, mut seen, mut messages) = (RecvRing::new(), Vec::new(), 0);
    eventually(Duration::from_secs(2), || {
        messages += receiver.recv(&mut ring).unwrap();
        for datagram in ring.datagrams() {
            assert_eq!(datagram.from, sender.local_addr().unwrap());
            seen.push(datagram.bytes.to_vec());
        }
        seen.len() >= datagrams.len()
    });
    assert_eq!(seen, datagrams);
    messages
}

/// Asks for the container's MAC by one queue and sees its kernel answer by any.
fn arp_is_answered(asked: &Tap, queues: &[Tap]) -> bool {
    assert!(asked.write_frame(&VnetHeader::COMPLETE, &[&arp_request()]).unwrap());
    let mut frame = [0; 2048];
    eventually(Duration::from_secs(2), || {
        let read = |frame: &mut [u8]| queues.iter().find_map(|tap| tap.read_frame(frame, &mut []).unwrap());
        while let Some((_, length)) = read(&mut frame) {
            if length >= 42 && frame[12..14] == [0x08, 0x06] && frame[21] == 2 {
                return frame[28..32] == [10, 1, 0, 2];
            }
        }
        false
    })
}

/// Who has 10.1.0.2? Tell 10.1.0.1.
fn arp_request() -> Vec<u8> {
    let mut frame = [[0xff; 6], GATEWAY_MAC].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(GATEWAY_MAC);
    frame.extend([10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 10, 1, 0, 2]);
    frame
}

/// What 10.1.0.1 says to a frame: its ARP reply or its echo reply.
fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let mut answer = frame.to_vec();
    answer[..6].copy_from_slice(&frame[6..12]);
    answer[6..12].copy_from_slice(&GATEWAY_MAC);
    if frame[12..14] == [0x08, 0x06] && frame[38..42] == [10, 1, 0, 1] {
        answer[21] = 2;
        answer[22..28].copy_from_slice(&GATEWAY_MAC);
        answer[28..32].copy_from_slice(&frame[38..42]);
        answer[32..42].copy_from_slice(&frame[22..32]);
        return Some(answer);
    }
    if frame[12..14] == [0x08, 0x00] && frame[23] == 1 && frame[34] == 8 {
        answer[26..30].copy_from_slice(&frame[30..34]);
        answer[30..34].copy_from_slice(&frame[26..30]);
        // Type 8 becomes 0, so the checksum grows by 0x0800 (RFC 1624).
        answer[34] = 0;
        let sum = u32::from(u16::from_be_bytes([frame[36], frame[37]])) + 0x0800;
        let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        answer[36..38].copy_from_slice(&sum.to_be_bytes());
        return Some(answer);
    }
    None
}

fn ipv4_header(length: u16, protocol: u8, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let length = length.to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
    header.extend(from);
    header.extend(to);
    let checksum = checksum(&header);
    header[10..12].copy_from_slice(&checksum);
    header
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (!u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()).to_be_bytes()
}

const GATEWAY_MAC: [u8; 6] = [2, 0x42, 10, 1, 0, 1];
const RUN_BYTES: usize = 44_001;
const HOLD: &str = "--hold-a-laboratory";
const EMSGSIZE: i32 = 90;
