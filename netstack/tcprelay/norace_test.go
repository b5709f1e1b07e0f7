//go:build !race

package tcprelay_test

const raceEnabled = false

// slow is a measure of how slow the race detector makes this.
const slow = 0
