//! The `sidekey` program; everything is in the library.

use std::process::ExitCode;

/// Gives the memory of ended streams back, which glibc keeps; configured in `.cargo/config.toml`.
#[cfg(all(feature = "jemalloc", not(target_env = "msvc")))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    sidekey::cli::main()
}
