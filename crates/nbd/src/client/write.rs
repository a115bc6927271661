//! Writes, zeros, trims and flushes, for restores.
//!
//! None of them is tried again: a peer that errors on a write may have done any part of it, and the caller has to know.

use std::ops::Range;

use super::Client;
use super::pool::Pool;
use super::read::failed;
use super::work::Work;
use crate::error::{Command, Error};
use crate::proto::consts::{
    COMMAND_FLAG_NO_HOLE, TRANSMISSION_SEND_FLUSH, TRANSMISSION_SEND_TRIM, TRANSMISSION_SEND_WRITE_ZEROES,
};

/// Most bytes of one request without payload; below 2 GiB because some servers count in signed 32 bits.
const PLAIN_PIECE_BYTES: u32 = 1 << 30;

pub(super) async fn write(pool: &Pool, offset: u64, buffer: Vec<u8>) -> Result<Vec<u8>, Error> {
    let bytes = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
    let range = check(pool, Command::Write, offset, bytes)?;
    if range.is_empty() {
        return Ok(buffer);
    }
    let _permit = pool.budget(buffer.len()).await;
    let work = Work { buffer, _permit, ..Work::new(Command::Write, offset) };
    run(pool, Work { ranges: vec![range], piece_bytes: pool.piece_bytes(), ..work })
        .await
        .map(|work| work.buffer)
}

pub(super) async fn write_zeroes(pool: &Pool, offset: u64, bytes: u64, keep_hole: bool) -> Result<(), Error> {
    let range = check(pool, Command::WriteZeroes, offset, bytes)?;
    if pool.info().flags & TRANSMISSION_SEND_WRITE_ZEROES == 0 {
        return write_real_zeroes(pool, range).await;
    }
    let flags = if keep_hole { 0 } else { COMMAND_FLAG_NO_HOLE };
    plain(pool, Command::WriteZeroes, flags, range).await
}

pub(super) async fn trim(pool: &Pool, offset: u64, bytes: u64) -> Result<(), Error> {
    let range = check(pool, Command::Trim, offset, bytes)?;
    offered(pool, Command::Trim, TRANSMISSION_SEND_TRIM)?;
    plain(pool, Command::Trim, 0, range).await
}

pub(super) async fn flush(pool: &Pool) -> Result<(), Error> {
    let range = check(pool, Command::Flush, 0, 0)?;
    offered(pool, Command::Flush, TRANSMISSION_SEND_FLUSH)?;
    run(pool, Work { ranges: vec![range], ..Work::new(Command::Flush, 0) }).await.map(drop)
}

/// For servers without WRITE_ZEROES.
async fn write_real_zeroes(pool: &Pool, range: Range<u64>) -> Result<(), Error> {
    let mut zeroes = vec![0; usize::try_from(pool.piece_bytes()).unwrap_or(usize::MAX)];
    let mut at = range.start;
    while at < range.end {
        let bytes = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(zeroes.len());
        zeroes.truncate(bytes);
        zeroes = write(pool, at, zeroes).await?;
        at += u64::try_from(bytes).unwrap_or(u64::MAX);
    }
    Ok(())
}

/// A command without payload on a range, in pieces that every server can count.
async fn plain(pool: &Pool, command: Command, flags: u16, range: Range<u64>) -> Result<(), Error> {
    if range.is_empty() {
        return Ok(());
    }
    let work = Work { flags, piece_bytes: PLAIN_PIECE_BYTES, ..Work::new(command, range.start) };
    run(pool, Work { ranges: vec![range], ..work }).await.map(drop)
}

async fn run(pool: &Pool, work: Work) -> Result<Work, Error> {
    let mut work = pool.run(work).await?;
    work.faults.sort_unstable_by_key(|fault| std::cmp::Reverse(fault.offset));
    match work.faults.pop() {
        Some(fault) => Err(failed(pool, work.command, fault)),
        None => Ok(work),
    }
}

fn check(pool: &Pool, command: Command, offset: u64, bytes: u64) -> Result<Range<u64>, Error> {
    let info = pool.info();
    let export = || info.name.clone();
    if !pool.is_writable() {
        return Err(Error::ReadOnly { export: export() });
    }
    let range = Client::check_range(pool, command, offset, bytes)?;
    let block = u64::from(info.blocks.minimum);
    // The end of an export need not be a multiple of its block.
    if range.start % block != 0 || (range.end % block != 0 && range.end != info.size_bytes) {
        let block_bytes = info.blocks.minimum;
        return Err(Error::Unaligned { export: export(), command, offset, bytes, block_bytes });
    }
    Ok(range)
}

fn offered(pool: &Pool, command: Command, flag: u16) -> Result<(), Error> {
    match pool.info().flags & flag {
        0 => Err(Error::NotOffered { export: pool.info().name.clone(), command }),
        _ => Ok(()),
    }
}
