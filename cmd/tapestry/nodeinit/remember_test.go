package nodeinit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/codec"
)

// TestRemembers: a step while no API server answers takes the ranges that one said last, if nobody else can have
// written them. A server that answers is believed, however late.
func TestRemembers(t *testing.T) {
	s, l := newStep(t)
	s.podCIDRs, s.node, s.state = nil, "n1", t.TempDir()
	file := filepath.Join(s.state, rememberedFile)
	const node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n"
	nodes := func(text string) func(context.Context) (kube.Objects, error) {
		return func(context.Context) (kube.Objects, error) { return codec.Decode("node.yaml", []byte(text)) }
	}
	s.nodes = nodes(node + "spec: {podCIDRs: [10.244.9.0/24]}\n")
	first, err := s.waitForRanges(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	silent := func(ctx context.Context) (kube.Objects, error) { // until the step gives up
		<-ctx.Done()
		return kube.Objects{}, errors.New("nobody answers")
	}
	s.nodes, s.patience = silent, time.Millisecond
	if got, err := s.waitForRanges(t.Context()); err != nil || !reflect.DeepEqual(got, first) {
		t.Errorf("without an API server: %+v, %v; want %+v", got, err, first)
	}
	if !strings.Contains(l.text.String(), "no API server answers: the host TAP is made as it was") {
		t.Errorf("nothing was said of it:\n%s", l.text.String())
	}

	// The Node was made anew, and has no range yet.
	answers := []string{node, node + "spec: {podCIDRs: [10.244.7.0/24]}\n"}
	s.nodes = func(ctx context.Context) (kube.Objects, error) {
		text := answers[0]
		answers = answers[1:]
		if len(answers) == 1 {
			<-ctx.Done() // the step would have taken what it remembers, had nobody answered
		}
		return nodes(text)(ctx)
	}
	if got, err := s.waitForRanges(t.Context()); err != nil || got.PodCIDRs[0].String() != "10.244.7.0/24" {
		t.Errorf("%+v, %v", got, err)
	}

	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	put := func(text string, mode os.FileMode) {
		t.Helper()
		if err := errors.Join(os.WriteFile(file, []byte(text), mode), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		change func()
	}{
		{"damaged", func() { put(string(good[:len(good)/2]), 0o600) }},
		{"of another node", func() { put(strings.Replace(string(good), "n1", "n2", 1), 0o600) }},
		{"of another cluster", func() { put(strings.Replace(string(good), "10.244.", "10.99.", 1), 0o600) }},
		{"empty", func() { put("{}", 0o600) }},
		{"that others may write", func() { put(string(good), 0o620) }},
		{"too long", func() { put(string(good)+strings.Repeat(" ", mostRemembered), 0o600) }},
		{"that is a link", func() {
			if err := errors.Join(os.Rename(file, file+".to"), os.Symlink(file+".to", file)); err != nil {
				t.Fatal(err)
			}
		}},
		{"that is not there", func() { os.Remove(file) }},
	} {
		put(string(good), 0o600)
		if _, ok := s.recall(); !ok {
			t.Fatalf("before the file %s: it is not believed:\n%s", c.name, l.text.String())
		}
		c.change()
		if _, ok := s.recall(); ok {
			t.Errorf("a file %s is believed", c.name)
		}
		os.Remove(file)
	}
}
