//! The kernel: TAP devices, UDP, epoll, netlink, namespaces, clocks, the processor. The only unsafe code.
//!
//! Thin, typed and free of policy: what to send, to whom and when is decided by `worker` and
//! `agent`. The per-packet calls ([`tap::Tap::read_frame`], [`tap::Tap::write_frame`],
//! [`udp::UdpSocket::send_run`], [`udp::UdpSocket::recv`]) neither allocate nor lock.

pub mod autogroup;
pub mod clock;
pub mod container_port;
pub mod cpu;
pub mod cpu_latency;
pub mod epoll;
pub mod ethtool;
pub mod eventfd;
pub mod netlink;
pub mod netns;
pub mod own_sockets;
pub mod packet;
mod socket_option;
pub mod spawner;
pub mod steer;
pub mod tap;
pub mod udp;
