//! What later contenders watch to hear that a contender has left the line. There are no
//! lines here.

/// Of one contender in its line, where none stands.
#[derive(Clone, Debug)]
pub(crate) enum Presence {}

/// Its end would be what others hear.
impl Drop for Presence {
    fn drop(&mut self) {
        match *self {}
    }
}
