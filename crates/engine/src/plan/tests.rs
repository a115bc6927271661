//! The planner against a model that knows the status of every byte.

use proptest::prelude::*;

use super::*;

fn plan(grid: Grid, regions: &[(u64, Status)]) -> Vec<Piece> {
    let mut planner = Planner::new(grid);
    let mut pieces = Vec::new();
    let mut offset = 0;
    for &(bytes, status) in regions {
        planner.push(offset, bytes, status).unwrap();
        offset += bytes;
        while let Some(piece) = planner.next() {
            pieces.push(piece);
        }
    }
    planner.finish().unwrap();
    pieces
}

/// The action of every chunk, by looking at every byte of it.
fn model(grid: Grid, regions: &[(u64, Status)]) -> Vec<Action> {
    let bytes: Vec<Status> = regions
        .iter()
        .flat_map(|&(bytes, status)| std::iter::repeat_n(status, usize::try_from(bytes).unwrap()))
        .collect();
    bytes
        .chunks(usize::try_from(grid.chunk_bytes()).unwrap())
        .map(|chunk| {
            if chunk.iter().all(|&status| status == Status::Zero) {
                Action::Zero
            } else if chunk.iter().all(|&status| status == Status::Clean) {
                Action::Keep
            } else if chunk.iter().all(|&status| status == Status::Drawn) {
                Action::Recheck
            } else {
                Action::Read
            }
        })
        .collect()
}

/// The action of every chunk, out of the pieces; proves order and exact cover on the way.
fn flatten(grid: Grid, pieces: &[Piece]) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut next = 0;
    for piece in pieces {
        match piece {
            Piece::Span { action, stripes } => {
                assert_eq!(stripes.start, next);
                assert!(stripes.end > stripes.start);
                assert!(matches!(action, Action::Keep | Action::Zero));
                for stripe in stripes.clone() {
                    actions.extend(grid.stripe_chunks(stripe).map(|_| *action));
                }
                next = stripes.end;
            }
            Piece::Stripe(stripe) => {
                assert_eq!(stripe.index, next);
                next += 1;
                let mut chunk = grid.stripe_chunks(stripe.index).start;
                for run in stripe.runs() {
                    assert_eq!(run.chunks.start, chunk);
                    chunk = run.chunks.end;
                    actions.extend(run.chunks.map(|_| run.action));
                }
                assert_eq!(chunk, grid.stripe_chunks(stripe.index).end);
            }
        }
    }
    assert_eq!(next, grid.stripes());
    actions
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![Just(Status::Data), Just(Status::Zero), Just(Status::Clean)]
}

proptest! {
    #[test]
    fn every_chunk_gets_the_action_that_its_bytes_demand(
        regions in prop::collection::vec((1_u64..3_000, status()), 0..20),
        chunk_bytes in 1_u32..9,
    ) {
        let grid = Grid::new(regions.iter().map(|region| region.0).sum(), chunk_bytes);
        prop_assert_eq!(flatten(grid, &plan(grid, &regions)), model(grid, &regions));
    }
}

#[test]
fn a_sparse_disk_of_ten_tebibytes_is_one_span() {
    let grid = Grid::new(10 << 40, 128 << 10);
    let pieces = plan(grid, &[(10 << 40, Status::Zero)]);
    assert_eq!(pieces, [Piece::Span { action: Action::Zero, stripes: 0..grid.stripes() }]);
}

#[test]
fn an_empty_disk_has_no_pieces() {
    let grid = Grid::new(0, 128 << 10);
    assert_eq!(plan(grid, &[]), []);
    assert_eq!(grid.stripes(), 0);
}

#[test]
fn a_chunk_that_is_zero_only_in_part_is_read() {
    let grid = Grid::new(8, 4);
    let pieces = plan(grid, &[(2, Status::Zero), (2, Status::Data), (4, Status::Zero)]);
    assert_eq!(flatten(grid, &pieces), [Action::Read, Action::Zero]);
}

#[test]
fn a_chunk_that_is_clean_only_in_part_is_read_even_if_the_rest_is_zero() {
    let grid = Grid::new(4, 4);
    assert_eq!(flatten(grid, &plan(grid, &[(2, Status::Clean), (2, Status::Zero)])), [Action::Read]);
}

#[test]
fn the_short_last_chunk_is_planned_like_any_other() {
    let grid = Grid::new(9, 4);
    assert_eq!(grid.chunks(), 3);
    assert_eq!(grid.bytes_of(2..3), 8..9);
    assert_eq!(flatten(grid, &plan(grid, &[(8, Status::Zero), (1, Status::Data)]))[2], Action::Read);
}

#[test]
fn a_gap_an_overrun_and_a_short_description_are_errors() {
    let mut planner = Planner::new(Grid::new(10, 4));
    assert_eq!(planner.push(1, 2, Status::Data), Err(PlanError::Gap { expected: 0, found: 1 }));
    assert_eq!(planner.push(0, 11, Status::Data), Err(PlanError::PastEnd { end: 11, size_bytes: 10 }));
    planner.push(0, 4, Status::Zero).unwrap();
    assert_eq!(planner.next(), None);
    assert_eq!(planner.finish(), Err(PlanError::Short { covered: 4, size_bytes: 10 }));
}
