package app

import (
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	tapestry "tapestry.dev/tapestry/cmd/tapestry/app"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/lab"
)

// TestTools checks that the lab has all commands of the product that ask a node's agent, without the flag --socket.
func TestTools(t *testing.T) {
	var ours, theirs []string
	for _, tool := range tools {
		ours = append(ours, tool.name)
	}
	for _, c := range tapestry.Commands() {
		if slices.ContainsFunc(c.Flags, func(f cli.Flag) bool {
			s, ok := f.(*cli.StringFlag)
			return ok && s.Name == "socket" && s.Value == localapi.DefaultSocket
		}) {
			theirs = append(theirs, c.Name)
		}
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	if !slices.Equal(ours, theirs) {
		t.Errorf("the lab has %v, the product %v", ours, theirs)
	}
}

func TestAgentNode(t *testing.T) {
	st := &lab.Status{Nodes: []lab.NodeStatus{{Name: "a", Socket: "/a"}, {Name: "b", Socket: "/b"}, {Name: "guest", External: true}}}
	if n, err := agentNode(st, "b"); err != nil || n.Socket != "/b" {
		t.Errorf("got %+v, %v", n, err)
	}
	for name, want := range map[string]string{
		"": "no node was named: expected one of a, b", "c": `there is no node "c": the nodes are a, b`, "guest": "node guest is external",
	} {
		if _, err := agentNode(st, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", name, err, want)
		}
	}
}
