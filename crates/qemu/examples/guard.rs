//! The guard as a program of its own, for this crate's tests; the product has it as `aquifer guard`.

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), aquifer_qemu::Error> {
    aquifer_qemu::guard::run().await
}
