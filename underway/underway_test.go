package underway

import (
	"context"
	"testing"
	"testing/synctest"
)

// Whoever waits is told when nothing is under way, again and again, and how much is when he gives up.
func TestCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Count
		if left := c.Wait(t.Context()); left != 0 {
			t.Errorf("%d are under way before any began", left)
		}
		over, cancel := context.WithCancel(t.Context())
		cancel()
		for range 2 {
			c.Begin()
			c.Begin()
			if left := c.Wait(over); left != 2 {
				t.Errorf("who gives up is told of %d, want 2", left)
			}
			told := make(chan int, 3)
			for range cap(told) {
				go func() { told <- c.Wait(t.Context()) }()
			}
			c.End()
			c.Begin() // more may begin meanwhile
			c.End()
			synctest.Wait()
			if len(told) != 0 {
				t.Error("somebody was told while one is under way")
			}
			c.End()
			for range cap(told) {
				if left := <-told; left != 0 {
					t.Errorf("who has waited is told of %d", left)
				}
			}
		}
	})
}
