//! An overlayfs for the time of a run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Unmounted when dropped.
pub struct Overlay {
    merged: PathBuf,
}

impl Overlay {
    /// Mount one whose layers are in `place`.
    ///
    /// # Errors
    /// Why it could not be mounted: it takes root, in most places.
    pub fn mount(place: &Path) -> Result<Self, String> {
        let layer = |name: &str| {
            let path = place.join(name);
            fs::create_dir(&path).map_err(|why| format!("{}: {why}", path.display()))?;
            Ok::<_, String>(path)
        };
        let (lower, upper) = (layer("lower")?, layer("upper")?);
        let (work, merged) = (layer("work")?, layer("merged")?);
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let mount = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &layers])
            .arg(&merged)
            .output()
            .map_err(|why| format!("mount: {why}"))?;
        if !mount.status.success() {
            return Err(String::from_utf8_lossy(&mount.stderr).trim().to_owned());
        }
        Ok(Self { merged })
    }

    pub fn path(&self) -> &Path {
        &self.merged
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.merged).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("torture: {} stays mounted", self.merged.display());
        }
    }
}
