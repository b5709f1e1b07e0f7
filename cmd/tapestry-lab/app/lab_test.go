package app

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/lab/impair"
)

func TestPercent(t *testing.T) {
	for text, want := range map[string]float64{"": 0, "1%": 0.01, "0.5": 0.5, "100%": 1, "0%": 0} {
		if got, err := percent(text); err != nil || got != want {
			t.Errorf("%q is %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"x", "101%", "-1%", "2", "NaN", "%"} {
		if got, err := percent(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestBitRate(t *testing.T) {
	for text, want := range map[string]int64{"": 0, "100mbit": 100e6, "1.5Gbit": 15e8, "64kbit": 64e3, "9600": 9600, "9600bit": 9600} {
		if got, err := bitRate(text); err != nil || got != want {
			t.Errorf("%q is %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"fast", "-1mbit", "0", "1e9gbit", "mbit"} {
		if got, err := bitRate(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

// TestFlagsBehind: flags of the lab's commands may follow what the command is about.
func TestFlagsBehind(t *testing.T) {
	for _, line := range []string{"agent kill n1 --name X", "keeper kill n1 --name=X", "logs n1 -f --name X", "logs -f --name X"} {
		name, args, _ := strings.Cut(line, " ")
		for _, make := range []func() *cli.Command{agentCommand, keeperCommand, logsCommand} {
			cmd := make()
			if cmd.Name != name {
				continue
			}
			app := &cli.App{Commands: []*cli.Command{cmd}, Writer: io.Discard}
			err := app.Run(append([]string{"x", name}, strings.Fields(args)...))
			if err == nil || !strings.Contains(err.Error(), "X") {
				t.Errorf("%s: got %v, want that there is no lab X", line, err)
			}
		}
	}
}

// The flags of impair may stand before or behind the two names.
func TestImpairFlags(t *testing.T) {
	want := impair.Config{Loss: 0.01, Delay: 5 * time.Millisecond, Rate: 1e6, Seed: 7, MTU: 1400}
	for _, line := range []string{
		"impair n1 n2 --loss 1% --delay=5ms --rate 1mbit --seed 7 --mtu 1400 --no-icmp",
		"impair --loss 1% --delay 5ms --rate 1mbit --seed 7 --mtu 1400 --no-icmp n1 n2",
		"impair --loss 1% --no-icmp n1 n2 --delay 5ms --rate 1mbit --seed 7 -mtu 1400",
	} {
		var names []string
		var got impair.Config
		cmd := impairCommand()
		cmd.Action = func(c *cli.Context) (err error) {
			if names, err = interspersed(c, 2); err == nil {
				got, err = impairment(c)
			}
			return err
		}
		app := &cli.App{Commands: []*cli.Command{cmd}}
		if err := app.Run(append([]string{"x"}, strings.Fields(line)...)); err != nil {
			t.Errorf("%s: %v", line, err)
		}
		if got != want || !slices.Equal(names, []string{"n1", "n2"}) {
			t.Errorf("%s: %q %+v, want %+v", line, names, got, want)
		}
	}
	for _, line := range []string{"impair n1 n2 --loss", "impair n1 n2 --nonsense 1", "impair n1 n2 n3", "impair n1 n2 --loss 200%"} {
		cmd := impairCommand()
		cmd.Action = func(c *cli.Context) error {
			_, err := interspersed(c, 2)
			if err == nil {
				_, err = impairment(c)
			}
			return err
		}
		app := &cli.App{Commands: []*cli.Command{cmd}}
		if err := app.Run(append([]string{"x"}, strings.Fields(line)...)); err == nil {
			t.Errorf("%s is taken", line)
		}
	}
}

func TestPrintStatus(t *testing.T) {
	var b strings.Builder
	err := printStatus(&b, &lab.Status{
		Nodes:      []lab.NodeStatus{{Name: "n1", Agent: "ready"}},
		Pods:       []lab.PodStatus{{Namespace: "default", Name: "web", Ready: true, Phase: "Running", Node: "n1"}, {Namespace: "x", Name: "old", Terminating: true}},
		Services:   []lab.ServiceStatus{{Namespace: "default", Name: "s", Type: "ClusterIP", Ports: []string{"80/TCP"}, Ready: 1, Endpoints: 2}},
		Problems:   []string{"something is wrong"},
		ApplyError: "line one\nline two",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"n1        ready", "web     yes     Running", "x/old   no      Terminating", "1/2", "  something is wrong\n", "  line two\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}
