package app

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/test/lab"
)

// tools are the commands of tapestry that ask one node's agent. The lab knows the sockets of the agents.
var tools = []struct{ name, usage string }{
	{"status", "show the state of a node's network: tapestry status"},
	{"doctor", "find out what is wrong with a node, and what to do: tapestry doctor"},
	{"flows", "show what happens to the flows of a node: tapestry flows"},
	{"bugreport", "pack what helps to find a fault into one archive: tapestry bugreport"},
}

func toolCommands() []*cli.Command {
	var out []*cli.Command
	for _, tool := range tools {
		out = append(out, &cli.Command{
			Name: tool.name, Usage: tool.usage, UsageText: "tapestry-lab " + tool.name + " [--name NAME] NODE [FLAGS of tapestry " + tool.name + "]",
			Description: "Runs the command beside the node's agent, so that it asks that agent. The exit status is that of the command.",
			Flags:       []cli.Flag{nameFlag()},
			Action:      func(c *cli.Context) error { return runTool(c, tool.name) },
		})
	}
	return out
}

func runTool(c *cli.Context, name string) error {
	l, err := dial(c)
	if err != nil {
		return err
	}
	st, err := l.Status(c.Context)
	if err != nil {
		return err
	}
	n, err := agentNode(st, c.Args().First())
	if err != nil {
		return err
	}
	argv := append([]string{st.Product, name, "--socket", n.Socket}, c.Args().Tail()...)
	return run(c, l, lab.Node(n.Name), lab.Command{Argv: argv}, false)
}

// agentNode returns the node with that name, if it has an agent.
func agentNode(st *lab.Status, name string) (*lab.NodeStatus, error) {
	var names []string
	for i := range st.Nodes {
		n := &st.Nodes[i]
		switch {
		case n.Socket == "" && n.Name == name:
			return nil, fmt.Errorf("node %s is external and has no agent to ask", name)
		case n.Name == name:
			return n, nil
		case n.Socket != "":
			names = append(names, n.Name)
		}
	}
	if name == "" {
		return nil, fmt.Errorf("no node was named: expected one of %s", strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("there is no node %q: the nodes are %s", name, strings.Join(names, ", "))
}
