//! The documentation of the public interface has what a reader looks for.
//!
//! * Each item begins with one short sentence, as the index shows that and no more.
//! * Each verb has an example. Getters and the setters of options need none of their own.
//! * What can fail has a heading `Errors`, and each future a heading `Cancel safety`.
//! * Links from README and the pages to files of the repository lead somewhere.

mod api_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use api_support::{exported, feature, files, is_hidden, is_public, text};
use syn::{Attribute, Expr, ExprLit, ImplItem, Item, Lit, Meta, Signature, TraitItem};

/// Characters of a first sentence, as shown. A row of the index has about as many on a
/// narrow window; a longer one makes the index a text.
const FIRST_LINE: usize = 90;

/// Something with documentation of its own.
struct Documented {
    name: String,
    docs: String,
    signature: Option<Signature>,
}

#[test]
fn every_first_line_is_one_short_sentence() {
    let faults = interface().into_iter().filter_map(|item| {
        let paragraph = first_paragraph(&item.docs);
        // Methods, fields and variants are in no index.
        let is_in_index = !item.name.trim_start_matches("lockd::").contains("::");
        let first = if is_in_index { paragraph } else { first_sentence(&paragraph) };
        let length = first.chars().count();
        let is_short = length <= FIRST_LINE && first.ends_with(['.', ':']);
        (!is_short).then(|| format!("{} ({length}): {first}", item.name))
    });
    none(faults);
}

#[test]
fn every_verb_has_an_example() {
    let faults = interface().into_iter().filter_map(|item| {
        let is_verb = item.signature.as_ref().is_some_and(is_verb);
        let has_none = is_verb && !item.docs.contains("```");
        has_none.then_some(item.name)
    });
    none(faults);
}

#[test]
fn every_failure_and_every_future_has_its_heading() {
    let faults = interface().into_iter().filter_map(|item| {
        let signature = item.signature.as_ref()?;
        let output = text(&signature.output);
        let can_fail = output.contains("Result <");
        let is_future = signature.asyncness.is_some() || output.contains("Future <");
        let lacks = |needed: bool, heading: &str| needed && !item.docs.contains(heading);
        let missing = [(can_fail, "# Errors"), (is_future, "# Cancel safety")]
            .into_iter()
            .filter(|(needed, heading)| lacks(*needed, heading));
        let missing: Vec<_> = missing.map(|(_, heading)| heading).collect();
        (!missing.is_empty()).then(|| format!("{}: {}", item.name, missing.join(", ")))
    });
    none(faults);
}

#[test]
fn links_between_files_lead_somewhere() {
    let root = root();
    let mut pages = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    let docs = fs::read_dir(root.join("src/docs")).unwrap().map(|entry| entry.unwrap().path());
    pages.extend(docs.filter(|path| path.extension().is_some_and(|end| end == "md")));
    let mut faults = Vec::new();
    for page in pages {
        let content = fs::read_to_string(&page).unwrap();
        for link in content.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let is_file = link.contains('/') || link.ends_with(".md");
            let file = link.split('#').next().unwrap_or_default();
            if is_file && !link.contains("://") && !page.with_file_name(file).exists() {
                faults.push(format!("{}: {link}", page.display()));
            }
        }
    }
    none(faults.into_iter());
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn none(faults: impl Iterator<Item = String>) {
    let faults: Vec<_> = faults.collect();
    assert!(faults.is_empty(), "{} of them:\n{}", faults.len(), faults.join("\n"));
}

/// Getters say what they give by their names, and setters are shown in the example of
/// their options.
fn is_verb(signature: &Signature) -> bool {
    let output = text(&signature.output);
    let mut inputs = signature.inputs.iter().map(text);
    let receiver = inputs.next().unwrap_or_default();
    let is_future = signature.asyncness.is_some() || output.contains("Future <");
    let is_getter = receiver == "& self" && inputs.next().is_none() && !is_future;
    let is_setter = receiver == "mut self" && output == "-> Self";
    !is_getter && !is_setter
}

/// What the index shows.
fn first_paragraph(docs: &str) -> String {
    let lines = docs.lines().map(str::trim).skip_while(|line| line.is_empty());
    let lines: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    without_links(&lines.join(" "))
}

fn first_sentence(paragraph: &str) -> String {
    match paragraph.split_once(". ") {
        Some((first, _)) => format!("{first}."),
        None => paragraph.to_owned(),
    }
}

/// `[text](target)` as `text`, and without the marks of code.
fn without_links(markdown: &str) -> String {
    let mut shown = String::new();
    for piece in markdown.replace('`', "").split('[') {
        match piece.split_once("](") {
            Some((name, rest)) => {
                shown.push_str(name);
                shown.push_str(rest.split_once(')').map_or("", |(_, rest)| rest));
            }
            None => shown.push_str(&piece.replace(']', "")),
        }
    }
    shown
}

/// All that is public, with the names that users write.
fn interface() -> Vec<Documented> {
    let source = root().join("src");
    let mut found = of_module(&source.join("lib.rs"), &source, "", |path| {
        !path.starts_with(source.join("lockd")) && !path.starts_with(source.join("cli"))
    });
    let lockd = source.join("lockd");
    found.extend(of_module(&lockd.join("mod.rs"), &lockd, "lockd::", |_| true));
    found
}

fn of_module(
    module: &Path,
    folder: &Path,
    prefix: &str,
    belongs: impl Fn(&Path) -> bool,
) -> Vec<Documented> {
    let file = syn::parse_file(&fs::read_to_string(module).unwrap()).unwrap();
    let mut names = BTreeMap::new();
    for item in &file.items {
        match item {
            Item::Use(item) if is_public(&item.vis) && !is_hidden(&item.attrs) => {
                exported(&item.tree, &feature(&item.attrs), &mut names);
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    for path in files(folder).into_iter().filter(|path| belongs(path)) {
        let file = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
        for item in &file.items {
            documented(item, &names, prefix, &mut found);
        }
    }
    found
}

fn documented(
    item: &Item,
    names: &BTreeMap<String, String>,
    prefix: &str,
    found: &mut Vec<Documented>,
) {
    let is_named = |name: &str| names.contains_key(name);
    let mut add = |name: String, attributes: &[Attribute], signature: Option<&Signature>| {
        let name = format!("{prefix}{name}");
        found.push(Documented { name, docs: docs(attributes), signature: signature.cloned() });
    };
    match item {
        Item::Struct(item) if is_public(&item.vis) && is_named(&item.ident.to_string()) => {
            add(item.ident.to_string(), &item.attrs, None);
            for field in item.fields.iter().filter(|field| is_public(&field.vis)) {
                add(format!("{}::{}", item.ident, text(&field.ident)), &field.attrs, None);
            }
        }
        Item::Enum(item) if is_public(&item.vis) && is_named(&item.ident.to_string()) => {
            add(item.ident.to_string(), &item.attrs, None);
            for variant in &item.variants {
                add(format!("{}::{}", item.ident, variant.ident), &variant.attrs, None);
            }
        }
        Item::Trait(item) if is_public(&item.vis) && is_named(&item.ident.to_string()) => {
            add(item.ident.to_string(), &item.attrs, None);
            for method in &item.items {
                if let TraitItem::Fn(method) = method {
                    let name = format!("{}::{}", item.ident, method.sig.ident);
                    add(name, &method.attrs, Some(&method.sig));
                }
            }
        }
        Item::Fn(item) if is_public(&item.vis) && is_named(&item.sig.ident.to_string()) => {
            add(item.sig.ident.to_string(), &item.attrs, Some(&item.sig));
        }
        Item::Impl(item) if item.trait_.is_none() => {
            let whole = text(&item.self_ty);
            let name = whole.split([' ', '<']).next().unwrap_or_default();
            for method in item.items.iter().filter(|_| is_named(name)) {
                if let ImplItem::Fn(method) = method {
                    if is_public(&method.vis) && !is_hidden(&method.attrs) {
                        let verb = format!("{name}::{}", method.sig.ident);
                        add(verb, &method.attrs, Some(&method.sig));
                    }
                }
            }
        }
        _ => {}
    }
}

fn docs(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) => Some(line.value() + "\n"),
            _ => None,
        },
        _ => None,
    });
    lines.collect()
}
