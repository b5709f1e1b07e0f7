//go:build race

package tcprelay_test

const raceEnabled = true
