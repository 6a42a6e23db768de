//! A cluster that many change while its manager, or what its state is in, is killed again and again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use overlayd::api::Client;
use overlayd::api::types::InitResponse;

use super::changes::{Changers, Tally};
use super::simulated::SimulatedNode;
use super::swarm::Swarm;
use super::tell;

/// Nodes on host 2 and operators of agent 1 change its cluster. At a random instant `kill` kills something and
/// starts it again, so many times; each time what was acknowledged is there, and nothing is there by half.
pub(crate) fn assert_changes_survive(
    swarm: &Swarm,
    made: &InitResponse,
    kills: usize,
    mut kill: impl FnMut(usize) + Send,
) {
    swarm.create(&["--encrypted", "--subnet", "10.64.0.0/12", "red"]);
    let token = made.worker_token.parse().unwrap();
    let tally = swarm.lab.host(2).run_in(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(async {
            let nodes =
                join_all((0..3).map(|number| SimulatedNode::join(made.manager, &token, number))).await;
            let operator = Client::new(&swarm.agent(1).socket);
            let changers = Arc::new(Changers::of(made.manager, operator, nodes).await);
            for number in 0..kills {
                changers.begin();
                let at_work = Arc::clone(&changers);
                let changing = tokio::spawn(async move { at_work.change_until_it_dies().await });
                tokio::time::sleep(Duration::from_micros(rand::random_range(0..500_000))).await;
                changers.end();
                // The others go on meanwhile, on the threads of the runtime.
                kill(number);
                changers.stop();
                tokio::time::timeout(PATIENCE, changing).await.unwrap().unwrap();
                tokio::time::timeout(PATIENCE, changers.settle()).await.unwrap();
                changers.check().await;
            }
            changers.tally()
        })
    });
    let Tally { acknowledged, unanswered, made } = tally.unwrap();
    tell(&format!(
        "{kills} times killed: {acknowledged} changes acknowledged and all there, {unanswered} without an \
         answer, of which {made} were made, each whole"
    ));
    assert!(acknowledged > 0 && unanswered > 0, "nothing was changed meanwhile");
}

const PATIENCE: Duration = Duration::from_secs(60);
