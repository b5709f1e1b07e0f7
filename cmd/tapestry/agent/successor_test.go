package agent

import "testing"

// TestAwaited: the agent that has a node knows whether others wait for it, however many, and whichever of them ends.
func TestAwaited(t *testing.T) {
	c := &agentConfig{state: t.TempDir()}
	if c.awaited() {
		t.Error("awaited before anybody waits")
	}
	var leave []func()
	for range 2 {
		f, err := c.queue()
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, f)
	}
	for i, end := range leave {
		if !c.awaited() {
			t.Errorf("not awaited while %d wait", len(leave)-i)
		}
		end()
	}
	if c.awaited() {
		t.Error("awaited after everybody has left")
	}
}
