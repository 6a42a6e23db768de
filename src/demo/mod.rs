//! `overlayd demo`: the main job on one machine.

/// How the demo runs.
#[derive(Debug, Clone, Default)]
pub struct DemoOptions {}

/// Runs.
///
/// # Errors
/// Not yet.
pub fn run(_: DemoOptions) -> anyhow::Result<()> {
    anyhow::bail!("no demo yet")
}
