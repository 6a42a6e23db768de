//! Admits machines that join: a certificate, a place in the cluster, and where the managers are.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Manager, StoredAuthority, chain};
use crate::cluster::{Node, Role};
use crate::control::ca::AuthorityError;
use crate::control::enrol::{EnrolRefusal, EnrolRequest, Enrolled, USUAL_DATA_PORT};
use crate::events::Event;
use crate::id::NodeId;
use crate::io::clock::wall_clock;

impl Manager {
    /// The same as [`Self::admit`], on a thread that may wait for the store.
    pub(super) async fn admit_aside(
        self: &Arc<Self>,
        request: EnrolRequest,
        from: SocketAddr,
    ) -> Result<Enrolled, EnrolRefusal> {
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || this.admit(&request, from))
            .await
            .map_err(|_| EnrolRefusal::Unavailable("a task of the agent died".to_owned()))?
    }

    /// Admits a machine that shows a token.
    pub(super) fn admit(&self, request: &EnrolRequest, from: SocketAddr) -> Result<Enrolled, EnrolRefusal> {
        self.require_office().map_err(|gone| EnrolRefusal::Unavailable(gone.message))?;
        let (secret, now) = (request.secret.as_bytes(), self.token_time());
        let role = self.state.role_for_secret(secret, now)?;
        self.require_room_for(role).map_err(|why| {
            EnrolRefusal::Invalid(format!(
                "{why}: join with a worker token (`overlayd token worker` on the manager)"
            ))
        })?;
        let returning = request.former.as_ref().map(|former| self.returning(former)).transpose()?;
        let machine = &request.machine;
        if machine.taken == Some(self.data_port()) {
            return Err(EnrolRefusal::Invalid(format!(
                "UDP {}, where all nodes of this cluster receive encrypted data, is taken on this machine: stop what has it \
                 (`ss -lunp` names it)",
                self.data_port()
            )));
        }
        let advertise_ip = machine.advertise.unwrap_or_else(|| from.ip().to_canonical());
        let data_ip = machine.data.unwrap_or(advertise_ip);
        let node = Node {
            id: returning.as_ref().map_or_else(|| NodeId::from_entropy(rand::random()), |known| known.id),
            name: machine.host.clone(),
            role,
            advertise: SocketAddr::new(usable(advertise_ip)?, machine.advertise_port),
            data: SocketAddr::new(usable(data_ip)?, self.data_port()),
            underlay_mtu: machine.underlay_mtu,
        };
        // With a manager's token too, it is not made a manager by that.
        let role = if returning.is_some() { Role::Worker } else { role };
        let authority = StoredAuthority::open(&self.state);
        let authority = authority.map_err(|error| EnrolRefusal::Unavailable(error.to_string()))?;
        // Those that it is told: the next step of a rotation may come before it is admitted.
        let roots = self.state.roots();
        if !request.would_believe(authority.root(), &roots) {
            return Err(EnrolRefusal::WrongSecret);
        }
        let certificate = authority
            .issue_at(
                self.state.version(),
                &request.csr,
                (node.id, role),
                wall_clock(),
                self.certificate_life(),
            )
            .map_err(|error| {
                let why = error.to_string();
                let is_ours = matches!(error, AuthorityError::Clock { .. });
                if is_ours { EnrolRefusal::Unavailable(why) } else { EnrolRefusal::Invalid(why) }
            })?;
        let (id, name, advertise, data) = (node.id, node.name.clone(), node.advertise, node.data);
        let token = match returning {
            Some(_) => self.state.enrol_again(node, secret, now)?,
            None => self.state.enrol_node(node, secret, now)?,
        };
        self.events.record(Event::NodeJoined { node: id, name, role, from, token });
        Ok(Enrolled {
            node: id,
            role,
            chain: chain(&self.state, certificate, authority.root()),
            root: authority.root().clone(),
            roots,
            managers: self.addresses(),
            advertise,
            data,
        })
    }

    /// Removes a node that no machine knows to be: it would be listed for ever, and waited for.
    pub(super) async fn take_back_node(&self, node: NodeId) {
        let expires = self.latest_certificate_of(None);
        match self.on_state(move |state| state.take_back(node, expires)).await {
            Ok(()) => tracing::info!(%node, "removed again"),
            Err(error) => {
                tracing::warn!(%node, %error, "not removed again: do it with `overlayd node rm --force`, if it is listed");
            }
        }
    }

    /// The UDP port of encrypted data, one for the whole cluster: this node's.
    fn data_port(&self) -> u16 {
        let this = self.state.node(self.credentials.identity().node());
        this.map_or(USUAL_DATA_PORT, |node| node.data.port())
    }
}

fn usable(address: IpAddr) -> Result<IpAddr, EnrolRefusal> {
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(EnrolRefusal::Invalid(format!(
            "no other node can reach {address}: give an address with --advertise-addr or --data-addr"
        )));
    }
    Ok(address)
}
