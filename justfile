# The whole list of commands that anyone needs. `just` shows it.

_list:
    @just --list --unsorted

# Everything that must pass before a change lands
check: format lint doc test scripts

# The tree is formatted
format:
    cargo fmt --check

# No warning of compiler or clippy, in any target
lint:
    cargo clippy --all-targets -- -D warnings

# The documentation builds without a warning
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

# All tests; those that need namespaces run for real, as root or as fake root
test *ARGUMENTS:
    cargo test {{ARGUMENTS}}

# The scripts are clean
scripts:
    shellcheck -x netns-scripts/*.sh netns-scripts/throughput/*.sh

# The main job on this machine
demo:
    cargo run --release -- demo

# Criterion benchmarks
bench *ARGUMENTS:
    cargo bench {{ARGUMENTS}}

# Table and plot of the README, on a quiet machine: twenty minutes with every tunnel
figures:
    cargo build --release
    sudo netns-scripts/throughput.sh --peers vxlan,overlayd,null,gotatun,boringtun,nebula,fastd,openvpn,tinc,vpncloud,wireguard-go+vxlan --seconds 2 --rounds 5 --json docs/throughput.json --svg docs/throughput.svg --readme README.md

# Any measurement of the data path: overlayd beside the kernel's VXLAN, on a quiet machine
throughput *ARGUMENTS:
    cargo build --release
    sudo netns-scripts/throughput.sh {{ARGUMENTS}}

# Licences, advisories and sources of the dependencies
deny:
    cargo deny check
