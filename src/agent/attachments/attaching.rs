//! A container given an interface.
//!
//! What is asked for is written down, then a manager is asked while others may change something, then what was written
//! down is read again: a detachment may have come first, and wins.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Attachments, blocking, container};
use crate::api::ApiError;
use crate::api::types::{AttachRequest, AttachResponse};
use crate::cluster::{Endpoint, Network, NetworkView};
use crate::control::rpc::messages::Attach;
use crate::control::rpc::{ManagerClient, ManagerError};
use crate::control::store::local::{Attachment, AttachmentState, NetnsRef};
use crate::id::EndpointId;
use crate::io::netns::NetNs;

/// Pending attachments that somebody is about to finish or to take back.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<BTreeSet<EndpointId>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct OnItsWay<'a>(&'a UnderWay, EndpointId);

impl UnderWay {
    pub(super) fn begin(&self, id: EndpointId) -> OnItsWay<'_> {
        self.ids().insert(id);
        OnItsWay(self, id)
    }

    pub(super) fn has(&self, id: EndpointId) -> bool {
        self.ids().contains(&id)
    }

    fn ids(&self) -> MutexGuard<'_, BTreeSet<EndpointId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        self.0.ids().remove(&self.1);
    }
}

impl Attachments {
    /// Gives a container an interface; ready for traffic when this returns.
    pub(crate) async fn attach(
        &self,
        manager: &ManagerClient,
        request: AttachRequest,
    ) -> Result<AttachResponse, ApiError> {
        let (mut attachment, netns, _on_its_way) = self.begin(request).await?;
        let id = attachment.id;
        let attached = async {
            let (endpoint, network) = ask(manager, &mut attachment).await?;
            let view = self.in_view(&endpoint).await?;
            self.establish(attachment, (endpoint, network), &view, netns).await
        };
        match attached.await {
            Ok(response) => Ok(response),
            Err(error) => {
                self.give_up(manager, id).await;
                Err(error)
            }
        }
    }

    /// Writes down that an attachment is under way.
    async fn begin(&self, request: AttachRequest) -> Result<(Attachment, NetNs, OnItsWay<'_>), ApiError> {
        let _one = self.enter().await?;
        let attachments = self.all().await?;
        let (netns, request) =
            blocking(move || container::check(&request, &attachments).map(|n| (n, request))).await?;
        let attachment = Attachment {
            id: EndpointId::from_entropy(rand::random()),
            network: request.network,
            netns: NetnsRef {
                path: request.netns.path,
                dev: request.netns.device,
                inode: request.netns.inode,
            },
            ifname: request.ifname,
            name: request.name,
            cni: request.cni,
            docker: None,
            ips: request.addresses,
            mac: request.mac,
            rates: request.rates,
            state: AttachmentState::Pending,
            endpoint: None,
            mtu: None,
        };
        self.put(attachment.clone()).await?;
        let on_its_way = self.under_way.begin(attachment.id);
        Ok((attachment, netns, on_its_way))
    }

    /// Makes the interface of an attachment that has its endpoint now.
    async fn establish(
        &self,
        mut attachment: Attachment,
        (endpoint, network): (Endpoint, Network),
        view: &NetworkView,
        netns: NetNs,
    ) -> Result<AttachResponse, ApiError> {
        let _one = self.enter().await?;
        let attachments = self.all().await?;
        if attachments.iter().all(|written| written.id != attachment.id) {
            return Err(ApiError::conflict("it was detached while the manager was asked for its addresses"));
        }
        let twin = attachments.into_iter().find(|other| {
            other.id != attachment.id
                && other.network == network.name
                && (other.netns.dev, other.netns.inode) == (attachment.netns.dev, attachment.netns.inode)
                && other.state == AttachmentState::Ready
        });
        if let Some(twin) = twin {
            return Err(container::attached_already(&twin));
        }
        let mtu = self.dataplane.mtu(view).await;
        let lanes = self.dataplane.lane_count();
        let port = container::port(&attachment, &endpoint, &network, mtu, lanes);
        let gateways = port.gateways.clone();
        let queues = blocking(move || port.create(&netns, lanes)).await?;
        self.add_port(attachment.id, queues, attachment.rates).await?;
        attachment.state = AttachmentState::Ready;
        attachment.endpoint = Some(endpoint.clone());
        attachment.mtu = Some(mtu);
        let (ifname, rates) = (attachment.ifname.clone(), attachment.rates);
        self.put(attachment.clone()).await?;
        self.listen_to(&attachment).await;
        self.lost.forget(&network.name);
        Ok(AttachResponse { endpoint, network_name: network.name, ifname, mtu, rates, gateways })
    }

    /// Takes back what a failed attachment has come to, and tells the manager, who may have made its endpoint.
    async fn give_up(&self, manager: &ManagerClient, id: EndpointId) {
        let one = self.changing.lock().await;
        match self.written(id).await {
            Ok(Some(attachment)) => self.take_back(attachment).await,
            Ok(None) => {}
            Err(error) => tracing::warn!(endpoint = %id, %error, "an unfinished attachment cannot be read"),
        }
        drop(one);
        self.tell_gone(Some(manager), &[id]).await;
    }
}

/// Has the cluster give an attachment its endpoint.
pub(super) async fn ask(
    manager: &ManagerClient,
    attachment: &mut Attachment,
) -> Result<(Endpoint, Network), ManagerError> {
    let request = Attach {
        id: attachment.id,
        network: attachment.network.clone(),
        name: attachment.name.clone(),
        ips: attachment.ips.clone(),
        mac: attachment.mac,
    };
    let attached = manager.attach(request).await?;
    let (endpoint, network) = (attached.endpoint, attached.network);
    // The operator may have named the network by its id.
    attachment.network = network.name.clone();
    Ok((endpoint, network))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Lab;
    use super::*;

    #[tokio::test]
    async fn attachment_whose_manager_is_asked_is_left_alone_and_one_that_nobody_finishes_is_taken_back() {
        let lab = Lab::new().await;
        let pending = lab.pending(1);
        lab.attachments.put(pending.clone()).await.expect("written");
        let on_its_way = lab.attachments.under_way.begin(pending.id);
        lab.attachments.mend(pending.id).await.expect("left alone");
        assert_eq!(lab.attachments.all().await.expect("read"), std::slice::from_ref(&pending));
        drop(on_its_way);
        lab.attachments.mend(pending.id).await.expect("taken back");
        assert_eq!(lab.attachments.all().await.expect("read"), []);
    }

    #[tokio::test]
    async fn detachment_that_comes_while_the_manager_is_asked_wins() {
        let lab = Lab::new().await;
        let pending = lab.pending(1);
        lab.attachments.put(pending.clone()).await.expect("written");
        let _on_its_way = lab.attachments.under_way.begin(pending.id);
        let detached = lab.attachments.detach(None, &lab.detachment(&pending)).await;
        assert_eq!(detached, Ok(pending.id));

        let (endpoint, view) = lab.answer(&pending);
        let answer = (endpoint, view.network.clone());
        let here = NetNs::current().expect("a namespace");
        let refused = lab.attachments.establish(pending, answer, &view, here).await;
        assert!(refused.is_err_and(|error| error.message.contains("was detached")));
        assert_eq!(lab.attachments.all().await.expect("read"), []);
    }
}
