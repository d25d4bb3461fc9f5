//! What the source of the crate says of its public interface.

#![allow(dead_code, unreachable_pub, reason = "not every test needs all of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use quote::ToTokens;
use syn::{Attribute, UseTree, Visibility};

pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

pub fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

pub fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| text(attribute).contains("doc (hidden)"))
}

/// ` (feature …)`, if the item is there with a feature alone.
pub fn feature(attributes: &[Attribute]) -> String {
    let names = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    let names = names.filter_map(|cfg| Some(text(cfg).split('"').nth(1)?.to_owned()));
    names.map(|name| format!(" (feature {name})")).collect()
}

pub fn exported(tree: &UseTree, feature: &str, found: &mut BTreeMap<String, String>) {
    match tree {
        UseTree::Path(path) => exported(&path.tree, feature, found),
        UseTree::Name(name) => drop(found.insert(name.ident.to_string(), feature.to_owned())),
        UseTree::Group(group) => {
            group.items.iter().for_each(|tree| exported(tree, feature, found));
        }
        UseTree::Rename(_) | UseTree::Glob(_) => panic!("lib.rs names each item as it is"),
    }
}

pub fn text(tokens: impl ToTokens) -> String {
    tokens.to_token_stream().to_string()
}
