//! Which backups of a domain a retention policy keeps, and why; a pure function of what is listed.
//!
//! Each rule keeps the newest backup of each of the newest so many hours, days, weeks, months or years in which there is
//! one, in UTC; a gap uses nothing up. Not here: what must stay whatever the policy says ([`crate::prune`]).
//!
//! Invariant: every backup has at least one reason to be kept, or is dropped.

use std::collections::BTreeMap;

use uuid::Uuid;

const DAY_MS: u64 = 24 * HOUR_MS;
const HOUR_MS: u64 = 60 * 60 * 1000;

/// How many backups a policy keeps; 0 turns a rule off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeepRules {
    /// The newest.
    pub last: u32,
    /// The newest of each hour.
    pub hourly: u32,
    /// The newest of each day.
    pub daily: u32,
    /// The newest of each week, which begins on Monday.
    pub weekly: u32,
    /// The newest of each month.
    pub monthly: u32,
    /// The newest of each year.
    pub yearly: u32,
}

/// A backup as a policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dated {
    pub(crate) backup: Uuid,
    /// The instant that it shows, in milliseconds since 1970 UTC.
    pub(crate) created_ms: u64,
}

/// Names the hour, day, … in which a time lies.
type Period = fn(u64) -> String;

impl KeepRules {
    /// True when no rule keeps anything.
    pub fn is_empty(&self) -> bool {
        *self == KeepRules::default()
    }

    /// Why each of `backups`, newest first, is kept; those without a reason are not in the map.
    pub(crate) fn reasons(&self, backups: &[Dated]) -> BTreeMap<Uuid, Vec<String>> {
        let mut reasons: BTreeMap<Uuid, Vec<String>> = BTreeMap::new();
        for (number, dated) in (1..=self.last).zip(backups) {
            reasons.entry(dated.backup).or_default().push(format!("last {number} of {}", self.last));
        }
        let rules: [(u32, &str, Period); 5] = [
            (self.hourly, "hourly", hour),
            (self.daily, "daily", day),
            (self.weekly, "weekly", week),
            (self.monthly, "monthly", month),
            (self.yearly, "yearly", year),
        ];
        for (limit, rule, period) in rules {
            let mut periods: Vec<String> = Vec::new();
            for dated in backups {
                let period = period(dated.created_ms);
                if periods.len() >= limit as usize {
                    break;
                }
                // Clocks may go wrong, so equal periods need not be neighbours.
                if !periods.contains(&period) {
                    reasons.entry(dated.backup).or_default().push(format!("{rule} {period}"));
                    periods.push(period);
                }
            }
        }
        reasons
    }
}

fn year(ms: u64) -> String {
    format!("{:04}", civil(ms / DAY_MS).0)
}

fn month(ms: u64) -> String {
    let (year, month, _) = civil(ms / DAY_MS);
    format!("{year:04}-{month:02}")
}

fn day(ms: u64) -> String {
    let (year, month, day) = civil(ms / DAY_MS);
    format!("{year:04}-{month:02}-{day:02}")
}

fn hour(ms: u64) -> String {
    format!("{}T{:02}", day(ms), ms % DAY_MS / HOUR_MS)
}

/// A week by its Monday. 1970 began on a Thursday.
fn week(ms: u64) -> String {
    let weekday = (ms / DAY_MS + 3) % 7;
    format!("of {}", day(ms.saturating_sub(weekday * DAY_MS)))
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years are counted from March, so that the leap day is the last; 719468 days lie between 0000-03-01 and 1970.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Backups at these hours since 1970, newest first.
    fn at_hours(hours: &[u64]) -> Vec<Dated> {
        let dated = |(number, hour): (usize, &u64)| Dated {
            backup: Uuid::from_u128(number as u128),
            created_ms: hour * HOUR_MS + 1,
        };
        hours.iter().enumerate().map(dated).collect()
    }

    fn kept(rules: KeepRules, hours: &[u64]) -> Vec<u64> {
        let backups = at_hours(hours);
        let reasons = rules.reasons(&backups);
        let kept = backups.iter().zip(hours).filter(|(dated, _)| reasons.contains_key(&dated.backup));
        kept.map(|(_, hour)| *hour).collect()
    }

    #[test]
    fn days_have_their_calendar_dates() {
        let dates = [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (789, (1972, 2, 29)),
            (11_016, (2000, 2, 29)),
            (20_783, (2026, 11, 26)),
            (47_541, (2100, 3, 1)),
        ];
        for (days, date) in dates {
            assert_eq!(civil(days), date);
        }
        assert_eq!(week(20_783 * DAY_MS), "of 2026-11-23");
        assert_eq!(week(20_786 * DAY_MS), "of 2026-11-23", "a Sunday ends its week");
        assert_eq!(week(20_787 * DAY_MS), "of 2026-11-30");
        assert_eq!(hour(DAY_MS - 1), "1970-01-01T23");
    }

    #[test]
    fn each_rule_keeps_the_newest_of_each_period() {
        let hours = [75, 74, 73, 50, 49, 2];
        assert_eq!(kept(KeepRules { last: 2, ..KeepRules::default() }, &hours), [75, 74]);
        assert_eq!(kept(KeepRules { daily: 2, ..KeepRules::default() }, &hours), [75, 50]);
        assert_eq!(kept(KeepRules { daily: 9, ..KeepRules::default() }, &hours), [75, 50, 2]);
        assert_eq!(kept(KeepRules { yearly: 5, ..KeepRules::default() }, &hours), [75]);
        assert_eq!(kept(KeepRules { last: 1, daily: 3, ..KeepRules::default() }, &hours), [75, 50, 2]);
    }

    #[test]
    fn a_gap_uses_nothing_up() {
        // Nothing was backed up for a hundred days: the two newest days that have a backup are kept.
        assert_eq!(kept(KeepRules { daily: 2, ..KeepRules::default() }, &[3000, 600, 599]), [3000, 600]);
    }

    #[test]
    fn every_reason_is_named() {
        let backups = at_hours(&[20_783 * 24]);
        let rules = KeepRules { last: 3, hourly: 1, daily: 1, weekly: 1, monthly: 1, yearly: 1 };
        let expected = [
            "last 1 of 3",
            "hourly 2026-11-26T00",
            "daily 2026-11-26",
            "weekly of 2026-11-23",
            "monthly 2026-11",
            "yearly 2026",
        ];
        assert_eq!(rules.reasons(&backups)[&backups[0].backup], expected);
    }

    proptest! {
        #[test]
        fn more_generous_rules_keep_whatever_less_generous_ones_keep(
            mut hours in prop::collection::vec(0_u64..20_000, 0..40),
            daily in 0_u32..6, weekly in 0_u32..6, more in 0_u32..4,
        ) {
            hours.sort_unstable_by(|a, b| b.cmp(a));
            let few = kept(KeepRules { daily, weekly, ..KeepRules::default() }, &hours);
            let many = kept(KeepRules { daily: daily + more, weekly, last: more, ..KeepRules::default() }, &hours);
            prop_assert!(few.iter().all(|hour| many.contains(hour)));
            prop_assert!(few.len() <= (daily + weekly) as usize);
        }

        #[test]
        fn pruning_again_drops_nothing_more(
            mut hours in prop::collection::vec(0_u64..20_000, 0..40),
            daily in 0_u32..6, weekly in 0_u32..6, monthly in 0_u32..6,
        ) {
            hours.sort_unstable_by(|a, b| b.cmp(a));
            hours.dedup();
            let rules = KeepRules { daily, weekly, monthly, ..KeepRules::default() };
            let once = kept(rules, &hours);
            prop_assert_eq!(kept(rules, &once), once);
        }
    }
}
