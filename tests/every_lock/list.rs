//! The list of kinds is whole. Only with all features it can be.

use std::any::type_name;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Expr, ExprMatch, ItemFn, ItemImpl, Lit, Pat, Type};

use crate::kinds::*;

/// The same lock as its readers name it: `readers.rs` is about it.
const NOT_A_KIND: &str = "Shared";

macro_rules! types_and_schemes {
    (() $($(#[$when:meta])* $name:ident: $kind:ty,)*) => {{
        let (mut types, mut schemes) = (BTreeSet::new(), BTreeSet::new());
        $( $(#[$when])* {
            types.insert(last_name(type_name::<<$kind as Kind>::Lock>()));
            schemes.extend(<$kind as Kind>::SCHEMES.iter().map(|&scheme| scheme.to_owned()));
        } )*
        (types, schemes)
    }};
}

fn last_name(path: &str) -> String {
    path.rsplit("::").next().expect("a name").to_owned()
}

/// What a folder's files have.
#[derive(Default)]
struct Found {
    /// Types by the last name of the trait that they implement.
    locks: BTreeSet<String>,
    shared: BTreeSet<String>,
    /// Texts that `open` compares a scheme with.
    schemes: BTreeSet<String>,
}

impl<'a> Visit<'a> for Found {
    fn visit_item_impl(&mut self, item: &'a ItemImpl) {
        let (Some((path, _)), Type::Path(of)) = (&item.trait_, &*item.self_ty) else { return };
        let last = |path: &syn::Path| path.segments.last().expect("a name").ident.to_string();
        match last(path).as_str() {
            "Lock" => self.locks.insert(last(&of.path)),
            "SharedLock" => self.shared.insert(last(&of.path)),
            _ => false,
        };
    }

    fn visit_item_fn(&mut self, item: &'a ItemFn) {
        if item.sig.ident == "open" {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_expr_match(&mut self, item: &'a ExprMatch) {
        let Expr::Path(of) = &*item.expr else { return };
        if of.path.is_ident("scheme") {
            item.arms.iter().for_each(|arm| self.texts_of(&arm.pat));
        }
    }
}

impl Found {
    fn texts_of(&mut self, pattern: &Pat) {
        match pattern {
            Pat::Lit(literal) => {
                let Lit::Str(text) = &literal.lit else { return };
                self.schemes.insert(text.value());
            }
            Pat::Or(several) => several.cases.iter().for_each(|case| self.texts_of(case)),
            _ => {}
        }
    }

    fn in_source() -> Self {
        let mut found = Self::default();
        for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
            let text = fs::read_to_string(&path).expect("a source");
            found.visit_file(&syn::parse_file(&text).expect("Rust"));
        }
        found
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("one").path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs"));
    files.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

/// Some are refused with what to write instead.
fn is_opened(scheme: &str) -> bool {
    let places = ["localhost", "localhost/tmp", "/tmp"];
    places.iter().any(|place| lockkeeper::open(format!("{scheme}://{place}")).is_ok())
}

#[test]
fn no_kind_is_missing() {
    let (types, schemes) = kinds! { types_and_schemes };
    let (shared, _): (_, BTreeSet<String>) = shared_kinds! { types_and_schemes };
    let found = Found::in_source();
    let locks: BTreeSet<String> =
        found.locks.into_iter().filter(|name| name != NOT_A_KIND).collect();
    assert!(locks.len() > 3 && found.schemes.len() > 4, "the source was not understood");
    assert_eq!(locks, types, "each type that implements Lock has a line in kinds.rs");
    assert_eq!(found.shared, shared, "each type that implements SharedLock has a line");
    let opened: BTreeSet<String> =
        found.schemes.into_iter().filter(|scheme| is_opened(scheme)).collect();
    assert_eq!(opened, schemes, "each scheme that open knows has a line in kinds.rs");
}
