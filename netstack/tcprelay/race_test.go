//go:build race

package tcprelay_test

const raceEnabled = true

// slow is a measure of how slow the race detector makes this.
const slow = 1
