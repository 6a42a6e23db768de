//! The MTU of the containers' interfaces, kept equal to that of their networks.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Attachments, blocking, container};
use crate::api::ApiError;
use crate::control::store::local::{Attachment, AttachmentState};

impl Attachments {
    /// Gives every interface the MTU of its network, now and whenever one changes.
    pub(crate) async fn keep_mtus(self: Arc<Self>) {
        let mut followed = self.dataplane.followed();
        let mut known = BTreeMap::new();
        loop {
            followed.borrow_and_update();
            let mtus = self.dataplane.mtus().await;
            // Most views differ in other things.
            if mtus != known && self.fit_interfaces().await.is_ok() {
                known = mtus;
            }
            if followed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// One that fails is tried again with the other repairs.
    async fn fit_interfaces(&self) -> Result<(), ApiError> {
        for attachment in self.all().await? {
            if self.other_mtu(&attachment).await.is_some()
                && let Err(error) = self.mend(attachment.id).await
            {
                self.trouble(&attachment.network, attachment.id, &error);
            }
        }
        Ok(())
    }

    /// The MTU of an attachment's network, if it is another than its interface was last given. Whoever
    /// changes it in the container has their way until then.
    pub(super) async fn other_mtu(&self, attachment: &Attachment) -> Option<u16> {
        let endpoint = attachment.endpoint.as_ref().filter(|_| attachment.state == AttachmentState::Ready)?;
        let view = self.dataplane.view().await;
        let mtu = self.dataplane.mtu(view.networks.get(&endpoint.network)?).await;
        (attachment.mtu != Some(mtu)).then_some(mtu)
    }

    pub(super) async fn set_mtu(&self, mut attachment: Attachment, mtu: u16) -> Result<(), ApiError> {
        let before = attachment.mtu.replace(mtu);
        let (id, network) = (attachment.id, attachment.network.clone());
        let given = attachment.clone();
        blocking(move || container::set_mtu(&given, mtu)).await?;
        self.put(attachment).await?;
        tracing::info!(endpoint = %id, %network, before, mtu, "the interface has another MTU");
        Ok(())
    }
}
