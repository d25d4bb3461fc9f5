//! Imports run one way, and none of them in a circle.
//!
//! Each folder of `src` is a room, and each room stands on a floor. A file may import from
//! its own room and from rooms on lower floors. So no kind of lock imports another kind.
//! An import counts for the file that defines what is imported, whichever module names it
//! again. What is compiled for tests alone is free.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use quote::ToTokens;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, UseTree, Visibility};

/// From the lowest floor to the highest.
const FLOORS: [&[&str]; 11] = [
    &["sys"],
    &["lock", "wire"],
    &["local"],
    &["lease", "election", "semaphore"],
    &["file", "kernel", "remote", "etcd", "postgres"],
    &["any"],
    &["lib"],
    &["docs"],
    &["lockd"],
    &["cli"],
    &["bin"],
];

type Module = Vec<String>;

/// One file of `src`.
#[derive(Default)]
struct Source {
    imports: BTreeSet<Module>,
    /// What its module names again, and where that comes from.
    exports: BTreeMap<String, Module>,
    /// Modules all of whose names it names again.
    globs: Vec<Module>,
    /// What in it only some systems have.
    bound: Vec<String>,
}

struct House {
    files: BTreeMap<Module, (PathBuf, Source)>,
}

impl House {
    fn of(root: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let relative = path.strip_prefix(root).unwrap().to_owned();
                    let text = fs::read_to_string(&path).unwrap();
                    let module = module_of(&relative);
                    let source = Reader::read(&module, &text);
                    files.insert(module, (relative, source));
                }
            }
        }
        Self { files }
    }

    /// The file that defines what this path names.
    fn definition(&self, path: &[String]) -> Option<&Module> {
        let (module, rest) = (0..=path.len()).rev().find_map(|length| {
            let (module, _) = self.files.get_key_value(&path[..length])?;
            Some((module, &path[length..]))
        })?;
        let source = &self.files[module].1;
        let Some(name) = rest.first() else { return Some(module) };
        if let Some(origin) = source.exports.get(name) {
            return self.definition(&[origin.as_slice(), &rest[1..]].concat());
        }
        let through_glob = source.globs.iter().find_map(|glob| {
            let path = [glob.as_slice(), rest].concat();
            self.definition(&path).filter(|found| *found != glob)
        });
        Some(through_glob.unwrap_or(module))
    }

    /// Which file imports from which.
    fn imports(&self) -> BTreeMap<&Module, BTreeSet<&Module>> {
        let of = |module, source: &Source| -> BTreeSet<&Module> {
            let found = source.imports.iter().filter_map(|path| self.definition(path));
            found.filter(|found| *found != module).collect()
        };
        self.files.iter().map(|(module, (_, source))| (module, of(module, source))).collect()
    }

    fn path(&self, module: &Module) -> String {
        format!("src/{}", self.files[module].0.display())
    }
}

fn module_of(relative: &Path) -> Module {
    let mut names: Module =
        relative.with_extension("").iter().map(|name| name.to_str().unwrap().to_owned()).collect();
    if names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    if names == ["lib"] {
        names.clear();
    }
    names
}

fn room(module: &Module) -> &str {
    module.first().map_or("lib", String::as_str)
}

fn floor(room: &str) -> usize {
    FLOORS
        .iter()
        .position(|rooms| rooms.contains(&room))
        .unwrap_or_else(|| panic!("src/{room} has no floor in tests/architecture.rs"))
}

/// Collects the imports of one file.
struct Reader<'a> {
    module: &'a Module,
    /// Inline modules around the item that is read.
    inner: Module,
    source: Source,
}

impl<'a> Reader<'a> {
    fn read(module: &'a Module, text: &str) -> Source {
        let mut reader = Self { module, inner: Vec::new(), source: Source::default() };
        reader.visit_file(&syn::parse_file(text).unwrap());
        reader.source
    }

    /// From the root of the crate; `None` for what comes from another crate.
    fn absolute(&self, path: &[String], children: bool) -> Option<Module> {
        let mut at = [self.module.as_slice(), &self.inner].concat();
        match path.first()?.as_str() {
            "crate" => return Some(path[1..].to_vec()),
            "self" => return Some([&at, &path[1..]].concat()),
            "super" => {}
            _ => return children.then(|| [&at, path].concat()),
        }
        let supers = path.iter().take_while(|name| *name == "super").count();
        at.truncate(at.len().checked_sub(supers)?);
        Some([&at, &path[supers..]].concat())
    }
}

/// By `cfg(test)`, or as one of several conditions that all must hold.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    let words = |attribute: &Attribute| attribute.meta.to_token_stream().to_string();
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).any(|attribute| {
        let condition = words(attribute);
        let condition = condition.trim_start_matches("cfg (");
        ["test", "all (test", "fuzzing"].iter().any(|test| condition.starts_with(test))
    })
}

/// Words in `cfg` that name systems.
const SYSTEMS: [&str; 7] =
    ["unix", "windows", "target_os", "target_family", "target_env", "target_vendor", "wasm"];

/// Crates and modules that only some systems have.
const BOUND: [&[&str]; 13] = [
    &["libc"],
    &["nix"],
    &["rustix"],
    &["signal_hook"],
    &["windows_sys"],
    &["std", "os"],
    &["std", "env", "consts"],
    &["tokio", "io", "unix"],
    &["tokio", "net", "UnixListener"],
    &["tokio", "net", "UnixStream"],
    &["tokio", "net", "windows"],
    &["tokio", "signal", "unix"],
    &["tokio", "signal", "windows"],
];

fn is_bound(path: &Module) -> bool {
    let begins_with = |known: &&[&str]| {
        path.len() >= known.len()
            && path.iter().zip(known.iter()).all(|(name, known)| name == known)
    };
    BOUND.iter().any(begins_with)
}

fn leaves(tree: &UseTree, before: &Module, found: &mut Vec<(Module, Option<String>)>) {
    let with = |name: &syn::Ident| [before.as_slice(), &[name.to_string()]].concat();
    match tree {
        UseTree::Path(path) => leaves(&path.tree, &with(&path.ident), found),
        UseTree::Name(name) if name.ident == "self" => {
            found.push((before.clone(), before.last().cloned()));
        }
        UseTree::Name(name) => found.push((with(&name.ident), Some(name.ident.to_string()))),
        UseTree::Rename(name) => found.push((with(&name.ident), Some(name.rename.to_string()))),
        UseTree::Glob(_) => found.push((before.clone(), None)),
        UseTree::Group(group) => group.items.iter().for_each(|tree| leaves(tree, before, found)),
    }
}

impl<'a> Visit<'a> for Reader<'_> {
    fn visit_item(&mut self, item: &'a Item) {
        let attributes = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'a ItemMod) {
        self.inner.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.inner.pop();
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        let mut found = Vec::new();
        leaves(&item.tree, &Vec::new(), &mut found);
        for (path, name) in found {
            if is_bound(&path) {
                self.source.bound.push(path.join("::"));
            }
            let is_export = !matches!(item.vis, Visibility::Inherited) && self.inner.is_empty();
            let Some(path) = self.absolute(&path, true) else { continue };
            match name {
                Some(name) if is_export => drop(self.source.exports.insert(name, path)),
                None if is_export => self.source.globs.push(path),
                _ => drop(self.source.imports.insert(path)),
            }
        }
    }

    fn visit_attribute(&mut self, attribute: &'a Attribute) {
        let words = attribute.meta.to_token_stream().to_string();
        let is_bound = |word: &str| SYSTEMS.contains(&word);
        if attribute.path().is_ident("cfg") && words.split([' ', '"', '(', ')']).any(is_bound) {
            self.source.bound.push(words);
        }
    }

    fn visit_macro(&mut self, invoked: &'a syn::Macro) {
        let words = invoked.tokens.to_string().replace(" :: ", "::");
        let words = words
            .split(|character: char| !character.is_alphanumeric() && !"_:".contains(character));
        let bound = words.filter(|word| is_bound(&word.split("::").map(str::to_owned).collect()));
        self.source.bound.extend(bound.map(str::to_owned));
        visit::visit_macro(self, invoked);
    }

    fn visit_lit_str(&mut self, text: &'a syn::LitStr) {
        if ["/proc/", "/sys/", "/dev/"].iter().any(|place| text.value().contains(place)) {
            self.source.bound.push(text.value());
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let names: Module = path.segments.iter().map(|name| name.ident.to_string()).collect();
        if is_bound(&names) {
            self.source.bound.push(names.join("::"));
        }
        if names.len() > 1 {
            self.source.imports.extend(self.absolute(&names, false));
        }
        visit::visit_path(self, path);
    }
}

/// What each file reaches by its imports, itself only by a circle.
fn reached<'a>(
    from: &'a Module,
    imports: &BTreeMap<&'a Module, BTreeSet<&'a Module>>,
) -> BTreeSet<&'a Module> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&Module> = imports[from].iter().copied().collect();
    while let Some(module) = next.pop() {
        if reached.insert(module) {
            next.extend(&imports[module]);
        }
    }
    reached
}

fn house() -> House {
    House::of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

#[test]
fn imports_go_from_higher_floors_to_lower_ones() {
    let house = house();
    let mut wrong = Vec::new();
    for (from, to) in house.imports() {
        for to in to {
            let (above, below) = (room(from), room(to));
            if above != below && floor(above) <= floor(below) {
                let (from, to) = (house.path(from), house.path(to));
                wrong.push(format!("{from} imports from {to}: {above} stands on no {below}"));
            }
        }
    }
    assert!(wrong.is_empty(), "imports run from higher floors to lower:\n{}", wrong.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let house = house();
    let imports = house.imports();
    let all: BTreeMap<_, _> =
        imports.keys().map(|module| (*module, reached(module, &imports))).collect();
    let mut circles = BTreeSet::new();
    for (module, reached) in all.iter().filter(|(module, reached)| reached.contains(*module)) {
        let back = reached.iter().filter(|other| all[**other].contains(module));
        let circle: Vec<_> = back.map(|module| house.path(module)).collect();
        circles.insert(circle.join(", "));
    }
    let circles: Vec<_> = circles.into_iter().collect();
    assert!(circles.is_empty(), "these import each other in a circle:\n{}", circles.join("\n"));
}

#[test]
fn every_folder_says_what_it_is_in_a_file_called_mod() {
    let house = house();
    for (module, (path, _)) in &house.files {
        let folder = path.parent().unwrap();
        let has_children = house.files.keys().any(|other| {
            other.len() == module.len() + 1 && other.starts_with(module) && !module.is_empty()
        });
        let is_mod = path.file_stem().is_some_and(|stem| stem == "mod");
        assert!(!has_children || is_mod, "{} belongs into a folder as mod.rs", folder.display());
    }
}

/// The daemon is for Unix: there the crate's root has one more module.
const ROOT: &str = "src/lib.rs";

#[test]
fn only_the_room_of_the_system_names_a_system() {
    let house = house();
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    let mut outside = Vec::new();
    for (module, (path, source)) in &house.files {
        if module.last().is_some_and(|name| name.ends_with("tests")) {
            continue;
        }
        if room(module) == "sys" {
            let text = fs::read_to_string(Path::new("src").join(path)).unwrap();
            let folder = module.get(1).filter(|_| module.len() > 2 || path.ends_with("mod.rs"));
            *lines.entry(folder.map_or("no system's", String::as_str)).or_default() +=
                text.lines().count();
        } else if house.path(module) != ROOT {
            outside
                .extend(source.bound.iter().map(|what| format!("{}: {what}", house.path(module))));
        }
    }
    println!("lines of src/sys, by folder: {lines:?}");
    assert!(outside.is_empty(), "these belong into src/sys:\n{}", outside.join("\n"));
}
