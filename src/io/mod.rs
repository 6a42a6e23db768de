//! The kernel: TAP devices, UDP, epoll, netlink, namespaces, clocks. The only unsafe code.
