//! The files that rules may `import`: exactly those in the rules directories when the rule set was loaded.
//!
//! Nothing is read from disk here, so an `import` cannot reach any other file, whatever its path.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rhai::{
    AST, ASTFlags, Dynamic, Engine, EvalAltResult, Expr, Module, OptimizationLevel, Position, Scope, Shared, Stmt,
};

use super::{bounds::Weight, fold, view::share};

/// The constants that functions see, by name: those of the file, and `params`.
pub(in crate::rule) type Constants = BTreeMap<String, Dynamic>;

/// A snapshot of all rule files, and the modules of those that were imported.
#[derive(Debug, Default)]
pub(in crate::rule) struct Imports {
    roots: Vec<PathBuf>,
    texts: BTreeMap<PathBuf, Arc<str>>,
    modules: Mutex<HashMap<PathBuf, Option<Made>>>,
    /// The constants of the imported files.
    constants: Mutex<HashMap<PathBuf, Arc<Constants>>>,
}

/// A module, with the number of functions and modules in it and in everything it imports.
#[derive(Debug, Clone)]
struct Made {
    module: Shared<Module>,
    size: usize,
}

/// Maximum depth of imports.
const MAX_NESTED: usize = 32;
/// Maximum size of a module. Rhai copies what a module imports into an index of that module, once per `import`: forty
/// files that each import the next one twice would make 10^12 entries.
const MAX_SIZE: usize = 10_000;

impl Imports {
    /// A snapshot of these files, found under these directories.
    pub(in crate::rule) fn new(roots: Vec<PathBuf>, texts: BTreeMap<PathBuf, Arc<str>>) -> Self {
        Self { roots, texts, modules: Mutex::default(), constants: Mutex::default() }
    }

    /// The file that `import "path"` in the file `source` refers to: next to that file, else under a rules directory.
    pub(in crate::rule) fn find(&self, source: Option<&str>, path: &str) -> Option<&PathBuf> {
        let beside = source.and_then(|source| Path::new(source).parent());
        beside.into_iter().chain(self.roots.iter().map(PathBuf::as_path)).find_map(|directory| {
            let wanted = normal(&directory.join(format!("{path}.rhai")));
            self.texts.get_key_value(&wanted).map(|(path, _)| path)
        })
    }

    /// The module that `import "path"` refers to.
    pub(in crate::rule) fn resolve(
        &self,
        engine: &Engine,
        source: Option<&str>,
        path: &str,
        position: Position,
    ) -> Result<Shared<Module>, Box<EvalAltResult>> {
        let file =
            self.find(source, path).ok_or_else(|| EvalAltResult::ErrorModuleNotFound(path.to_owned(), position))?;
        let refused = |message: String| Err(EvalAltResult::ErrorRuntime(message.into(), position).into());
        let nested = {
            let modules = self.lock();
            // `None` marks a module that is being made: finding it again means a cycle.
            match modules.get(file) {
                Some(Some(made)) => return Ok(Shared::clone(&made.module)),
                Some(None) => return refused(format!("`{path}` imports itself, directly or through others")),
                None => modules.values().filter(|made| made.is_none()).count(),
            }
        };
        if nested >= MAX_NESTED {
            return refused(format!("`{path}` is imported through a chain of more than {MAX_NESTED} files"));
        }
        self.lock().insert(file.clone(), None);
        let made = self.make(engine, file).map_err(|error| {
            self.lock().remove(file);
            Box::new(EvalAltResult::ErrorInModule(path.to_owned(), error, position))
        })?;
        let module = Shared::clone(&made.module);
        self.lock().insert(file.clone(), Some(made));
        Ok(module)
    }

    fn make(&self, engine: &Engine, file: &Path) -> Result<Made, Box<EvalAltResult>> {
        let text = self.texts.get(file).map_or("", |text| text);
        let mut scope = Scope::new();
        // The engine that was passed in folds constants while it parses.
        let mut parser = Engine::new_raw();
        parser.set_optimization_level(OptimizationLevel::None);
        let plain = parser.compile(text)?;
        let refuse_large = |scope: &Scope<'_>| -> Result<(), Box<EvalAltResult>> {
            if fold::is_too_large(&plain, scope) {
                let message = "the file's constants are too large, because Rhai copies each constant to every place \
                               that names it";
                return Err(EvalAltResult::ErrorRuntime(message.into(), Position::NONE).into());
            }
            Ok(())
        };
        refuse_large(&scope)?;
        let mut ast = engine.compile_with_scope(&scope, text)?;
        ast.set_source(file.to_string_lossy().as_ref());
        // Run once to get the file's constants; the second compilation lets its functions see them.
        engine.run_ast_with_scope(&mut scope, &ast)?;
        refuse_large(&scope)?;
        let size = self.size(&ast, file, &scope)?;
        let constants = scope.iter().map(|(name, _, value)| (name.to_owned(), share(value))).collect();
        self.constants.lock().unwrap_or_else(PoisonError::into_inner).insert(file.to_owned(), Arc::new(constants));
        let mut ast = engine.compile_with_scope(&scope, text)?;
        ast.set_source(file.to_string_lossy().as_ref());
        let module = Module::eval_ast_as_new(Scope::new(), &ast, engine)?;
        Ok(Made { module: module.into(), size })
    }

    /// The number of functions, modules and exported values that a module of this script will have. Its imports are
    /// already made.
    fn size(&self, ast: &AST, file: &Path, scope: &Scope<'_>) -> Result<usize, Box<EvalAltResult>> {
        let source = file.to_string_lossy();
        let mut size = 1 + ast.iter_functions().count();
        let refused = |message: String, position| Err(EvalAltResult::ErrorRuntime(message.into(), position).into());
        for statement in ast.statements() {
            let (import, position) = match statement {
                Stmt::Import(import, position) => (import, position),
                Stmt::Var(declaration, flags, _) if flags.intersects(ASTFlags::EXPORTED) => {
                    size += values(scope, &declaration.0.name);
                    continue;
                }
                Stmt::Export(export, _) => {
                    size += values(scope, &export.0.name);
                    continue;
                }
                _ => continue,
            };
            let Expr::StringConstant(path, _) = &import.0 else {
                let message = "an imported file can only import paths that are string literals";
                return refused(message.to_owned(), *position);
            };
            let imported = self.find(Some(&source), path);
            size += imported.and_then(|file| Some(self.lock().get(file)?.as_ref()?.size)).unwrap_or(0);
        }
        if size > MAX_SIZE {
            let message = format!("this file and its imports have more than {MAX_SIZE} functions and exported values");
            return refused(message, Position::NONE);
        }
        Ok(size)
    }

    /// The constants of an imported file.
    pub(in crate::rule) fn constants(&self, file: &str) -> Option<Arc<Constants>> {
        self.constants.lock().unwrap_or_else(PoisonError::into_inner).get(Path::new(file)).cloned()
    }

    /// The text of a file.
    pub(in crate::rule) fn text(&self, file: &Path) -> Option<Arc<str>> {
        self.texts.get(file).cloned()
    }

    /// The texts of all files.
    pub(in crate::rule) fn texts(&self) -> impl Iterator<Item = &Arc<str>> {
        self.texts.values()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Option<Made>>> {
        self.modules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of values in a variable.
fn values(scope: &Scope<'_>, name: &str) -> usize {
    scope.get(name).map_or(0, |value| Weight::of(value).nodes)
}

/// Normalizes a path by its text alone: removes `.`, and every `..` except leading ones.
pub(in crate::rule) fn normal(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => match result.components().next_back() {
                Some(Component::Normal(_)) => drop(result.pop()),
                Some(Component::RootDir) => {}
                _ => result.push(".."),
            },
            other => result.push(other),
        }
    }
    // The current directory.
    if result.as_os_str().is_empty() { PathBuf::from(".") } else { result }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_where_it_led() {
        for (path, wanted) in [
            ("../rules", "../rules"),
            ("../../a/./b/../c", "../../a/c"),
            ("a/../../b", "../b"),
            ("./rules/", "rules"),
            ("/../a", "/a"),
            ("a/..", "."),
            ("", "."),
        ] {
            assert_eq!(normal(Path::new(path)), Path::new(wanted), "{path}");
        }
    }
}
