//! The public interface is what `tests/public_api.txt` lists, so a change of it shows in
//! a review. After a change that is meant: `LOCKKEEPER_BLESS=1 cargo test --test public_api`.
//!
//! Listed are the items that `src/lib.rs` names, their fields, variants and methods, and
//! the traits that they implement, as the source has them.

mod api_support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use api_support::{exported, feature, files, is_hidden, is_public, text};
use syn::{Attribute, Fields, ImplItem, Item, TraitItem};

const LIST: &str = "tests/public_api.txt";

#[test]
fn the_public_interface_is_as_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = listing(&root.join("src"));
    let path = root.join(LIST);
    if std::env::var_os("LOCKKEEPER_BLESS").is_some() {
        return fs::write(path, found).unwrap();
    }
    let listed = fs::read_to_string(path).unwrap_or_default();
    let (found_lines, listed_lines): (BTreeSet<_>, BTreeSet<_>) =
        (found.lines().collect(), listed.lines().collect());
    let gone: Vec<_> = listed_lines.difference(&found_lines).collect();
    let new: Vec<_> = found_lines.difference(&listed_lines).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "{LIST} is out of date (LOCKKEEPER_BLESS=1 writes it anew)\ngone: {gone:#?}\nnew: {new:#?}"
    );
}

fn listing(source: &Path) -> String {
    let lib = syn::parse_file(&fs::read_to_string(source.join("lib.rs")).unwrap()).unwrap();
    let mut names = BTreeMap::new();
    for item in &lib.items {
        if let Item::Use(item) = item {
            if is_public(&item.vis) && !is_hidden(&item.attrs) {
                exported(&item.tree, &feature(&item.attrs), &mut names);
            }
        }
    }
    let mut lines = BTreeSet::new();
    for path in files(source) {
        let file = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
        let is_of_lib =
            !path.starts_with(source.join("lockd")) && !path.starts_with(source.join("cli"));
        for item in file.items.iter().filter(|_| is_of_lib) {
            list(item, &names, &mut lines);
        }
    }
    // The module `lockd` names its own.
    let lockd = syn::parse_file(&fs::read_to_string(source.join("lockd/mod.rs")).unwrap()).unwrap();
    let mut of_lockd = BTreeMap::new();
    for item in &lockd.items {
        match item {
            Item::Use(item) if is_public(&item.vis) && !is_hidden(&item.attrs) => {
                exported(&item.tree, " (feature lockd)", &mut of_lockd);
            }
            _ => {}
        }
    }
    for path in files(&source.join("lockd")) {
        let file = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
        let mut found = BTreeSet::new();
        file.items.iter().for_each(|item| list(item, &of_lockd, &mut found));
        lines.extend(found.into_iter().map(|line| format!("lockd::{line}")));
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| text(attribute) == "# [cfg (test)]")
}

fn list(item: &Item, names: &BTreeMap<String, String>, lines: &mut BTreeSet<String>) {
    let mut say = |name: &str, what: String| {
        if let Some(feature) = names.get(name) {
            lines.insert(format!("{what}{feature}"));
        }
    };
    match item {
        Item::Struct(item) if is_public(&item.vis) => {
            let name = item.ident.to_string();
            say(&name, format!("{name}{}: struct{}", text(&item.generics), marks(&item.attrs)));
            for field in item.fields.iter().filter(|field| is_public(&field.vis)) {
                let field = format!("{}: {}", text(&field.ident), text(&field.ty));
                say(&name, format!("{name}: field {field}"));
            }
        }
        Item::Enum(item) if is_public(&item.vis) => {
            let name = item.ident.to_string();
            say(&name, format!("{name}{}: enum{}", text(&item.generics), marks(&item.attrs)));
            for variant in &item.variants {
                let fields = match &variant.fields {
                    Fields::Unit => String::new(),
                    fields => {
                        let each = fields.iter().map(|field| match &field.ident {
                            Some(ident) => format!("{ident}: {}", text(&field.ty)),
                            None => text(&field.ty),
                        });
                        format!(" {{ {} }}", each.collect::<Vec<_>>().join(", "))
                    }
                };
                say(&name, format!("{name}: variant {}{fields}", variant.ident));
            }
        }
        Item::Trait(item) if is_public(&item.vis) => {
            let name = item.ident.to_string();
            say(&name, format!("{name}: trait {}", text(&item.supertraits)));
            for method in &item.items {
                match method {
                    TraitItem::Fn(method) => {
                        say(&name, format!("{name}: {}", text(&method.sig)));
                    }
                    TraitItem::Type(kind) => {
                        say(&name, format!("{name}: type {}: {}", kind.ident, text(&kind.bounds)));
                    }
                    _ => {}
                }
            }
        }
        Item::Fn(item) if is_public(&item.vis) => {
            let name = item.sig.ident.to_string();
            say(&name, text(&item.sig));
        }
        Item::Impl(item) if !is_for_tests(&item.attrs) => {
            let whole = text(&item.self_ty);
            let name = whole.split([' ', '<']).next().unwrap_or_default().to_owned();
            if let Some((path, _)) = &item.trait_ {
                return say(&name, format!("{whole}: impl {}", text(path)));
            }
            for method in &item.items {
                match method {
                    ImplItem::Fn(method) if is_public(&method.vis) && !is_hidden(&method.attrs) => {
                        say(&name, format!("{whole}: {}", text(&method.sig)));
                    }
                    ImplItem::Const(constant) if is_public(&constant.vis) => {
                        let kind = text(&constant.ty);
                        say(&name, format!("{whole}: const {}: {kind}", constant.ident));
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

/// What the compiler adds, or keeps users from.
fn marks(attributes: &[Attribute]) -> String {
    let marks = attributes.iter().filter(|attribute| {
        ["derive", "non_exhaustive"].iter().any(|name| attribute.path().is_ident(name))
    });
    marks.map(|mark| format!(" {}", text(&mark.meta))).collect()
}
