//! That a process forgets nothing that matters: it is led at random, in
//! lock-step with one that forgets nothing, and both must do the same.

use super::automaton::Automaton;
use super::order::Orderer;
use super::world::{Action, Rules, World};
use super::{Scenario, scenario};

/// Numbers that look random, splitmix64.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ bits >> 31) as usize % sides
    }
}

fn walk(scenario: &Scenario, automata: &mut [Automaton; 2], dice: &mut Dice) -> usize {
    let rules = Rules { nobody_exits: true, ..scenario.rules() };
    let mut orderer = Orderer::default();
    let mut worlds =
        [0, 1].map(|which| World::new(&mut automata[which], &scenario.programs, scenario.kills));
    for steps in 0..400 {
        let mut actions: Vec<Action> = Vec::new();
        // The number of an inode that only the mindful remembers is not reused.
        let is_same = |action: &Action| !matches!(action, Action::Step(_, 2..));
        worlds[0].successors(&mut automata[0], rules, |action, _| actions.push(action));
        actions.retain(is_same);
        if actions.is_empty() {
            return steps;
        }
        let action = actions[dice.throw(actions.len())];
        for which in [0, 1] {
            worlds[which].act(&mut automata[which], rules, action);
            worlds[which] = orderer.tidy(&worlds[which]);
        }
        let [forgetful, mindful] = [0, 1].map(|which| {
            let seen = worlds[which].seen_from_outside();
            (orderer.tidy_bytes(&seen), worlds[which].next_steps(&automata[which]))
        });
        assert_eq!(forgetful, mindful, "after {action:?}, step {steps}");
    }
    400
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: run it with --release")]
fn forgetting_changes_nothing() {
    let worlds = [
        "N2 N2 N2 k3",
        "W2 W2 W2 k3",
        "H2 W2 N2 k3",
        "C2 C2 O2 k2",
        "n2 n2 k3",
        "F2 F2 F2 k3",
        "f2 f2 k3",
        "N2 F2 F1 k3",
        "F2 F2 S2 k3",
        "L0 N2 W2 N2 k3",
        "L0 F2 F2 F2 k3",
    ];
    for world in worlds {
        let scenario = scenario(world);
        let mut automata = [Automaton::new(false), Automaton::new(true)];
        let mut dice = Dice(1);
        let mut steps = 0;
        for _ in 0..2000 {
            steps += walk(&scenario, &mut automata, &mut dice);
        }
        let [forgetful, mindful] = automata.map(|automaton| automaton.len());
        println!(
            "{world}: {steps} steps, {forgetful} nodes where {mindful} would be without forgetting"
        );
    }
}
