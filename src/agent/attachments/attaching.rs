//! A container given an interface.
//!
//! What is asked for is written down, then a manager is asked while others may change something, then what was written
//! down is read again: a detachment may have come first, and wins.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

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
pub(super) struct UnderWay(Mutex<BTreeMap<EndpointId, Arc<Notify>>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct OnItsWay<'a> {
    all: &'a UnderWay,
    id: EndpointId,
    gone: Arc<Notify>,
}

impl UnderWay {
    pub(super) fn begin(&self, id: EndpointId) -> OnItsWay<'_> {
        let gone = Arc::new(Notify::new());
        self.ids().insert(id, Arc::clone(&gone));
        OnItsWay { all: self, id, gone }
    }

    pub(super) fn has(&self, id: EndpointId) -> bool {
        self.ids().contains_key(&id)
    }

    /// What was written down of one is gone.
    pub(super) fn note_gone(&self, id: EndpointId) {
        if let Some(gone) = self.ids().get(&id) {
            gone.notify_one();
        }
    }

    fn ids(&self) -> MutexGuard<'_, BTreeMap<EndpointId, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OnItsWay<'_> {
    /// Resolves once what was written down of it is gone.
    async fn gone(&self) {
        self.gone.notified().await;
    }
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        self.all.ids().remove(&self.id);
    }
}

impl Attachments {
    /// Gives a container an interface; ready for traffic when this returns.
    pub(crate) async fn attach(
        &self,
        manager: &ManagerClient,
        request: AttachRequest,
    ) -> Result<AttachResponse, ApiError> {
        let (mut attachment, netns, on_its_way) = self.begin(request).await?;
        let id = attachment.id;
        let attached = async {
            let (endpoint, network) = ask(manager, &mut attachment).await?;
            let view = self.in_view_or_gone(&endpoint, &on_its_way).await?;
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

    /// Waits for a view that has the endpoint, unless its attachment goes meanwhile: a manager that made and
    /// removed the endpoint between two tellings sends none.
    async fn in_view_or_gone(
        &self,
        endpoint: &Endpoint,
        on_its_way: &OnItsWay<'_>,
    ) -> Result<NetworkView, ApiError> {
        tokio::select! {
            view = self.in_view(endpoint) => view,
            () = on_its_way.gone() => {
                let _one = self.enter().await?;
                Err(detached_meanwhile())
            }
        }
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
            return Err(detached_meanwhile());
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

fn detached_meanwhile() -> ApiError {
    ApiError::conflict("it was detached while the manager was asked for its addresses")
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
    use std::time::Duration;

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

    #[tokio::test]
    async fn detachment_that_the_manager_carries_out_before_it_tells_of_the_attachment_is_not_waited_out() {
        let lab = Lab::new().await;
        let pending = lab.pending(1);
        let (endpoint, _) = lab.answer(&pending);
        for comes_first in [true, false] {
            lab.attachments.put(pending.clone()).await.expect("written");
            let on_its_way = lab.attachments.under_way.begin(pending.id);
            let detachment = lab.detachment(&pending);
            let waiting = lab.attachments.in_view_or_gone(&endpoint, &on_its_way);
            // What the wait for a view would take is twice as long.
            let waiting = tokio::time::timeout(Duration::from_secs(5), waiting);
            let detaching = lab.attachments.detach(None, &detachment);
            let (detached, refused) = if comes_first {
                (detaching.await, waiting.await)
            } else {
                let (refused, detached) = tokio::join!(waiting, detaching);
                (detached, refused)
            };
            assert_eq!(detached, Ok(pending.id));
            let refused = refused.expect("it waits for a view").expect_err("it is gone");
            assert!(refused.message.contains("was detached"), "{refused:?}");
        }
    }
}
