package e2e

import (
	"context"
	"os"
	"slices"
	"testing"

	"tapestry.dev/tapestry/test/steps"
)

// TestSteps plays every step of the demo on one lab, takes the lab down, and checks that nothing of it is left.
func TestSteps(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testTime)
	defer cancel()
	s, err := steps.Up(ctx, steps.Options{Name: "steps", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{Client: s.Client, file: s.File(), ctx: ctx}
	down := false
	defer func() {
		if !down {
			c.down(t)
		}
	}()
	traces := tracesOf(t, s.Dir)
	names := map[string]bool{}
	all := steps.All()
	noRules := all[slices.IndexFunc(all, func(s steps.Step) bool { return s.Name == "no-rules" })]
	for _, step := range steps.All() {
		if names[step.Name] {
			t.Errorf("two steps are called %s", step.Name)
		}
		names[step.Name] = true
		t.Run(step.Name, func(t *testing.T) {
			detail, err := step.Run(ctx, s)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(detail)
			// There is not one packet filter rule at any time.
			if _, err := noRules.Run(ctx, s); err != nil {
				t.Error(err)
			}
		})
	}
	if t.Failed() {
		return
	}
	down = true
	if err := s.Down(ctx); err != nil {
		t.Fatal(err)
	}
	traces.gone(t)
	if _, err := os.Stat(s.Dir); !os.IsNotExist(err) {
		t.Errorf("the lab's folder is left: %v", err)
	}
}
