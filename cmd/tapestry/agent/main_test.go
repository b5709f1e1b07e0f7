package agent

import (
	"os"
	"testing"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/program"
	"tapestry.dev/tapestry/cmd/tapestry/supervise"
	"tapestry.dev/tapestry/kube/cni/plugin"
	"tapestry.dev/tapestry/test/userns"
)

// roleVar in the environment makes the test program an agent, a supervisor with its agent, or a CNI plugin.
const roleVar = "TAPESTRY_TEST_ROLE"

func TestMain(m *testing.M) {
	userns.Maybe()
	switch os.Getenv(roleVar) {
	case "supervised":
		if os.Args[1] == "supervise" {
			os.Exit(program.Run(&cli.App{Name: "tapestry", Commands: []*cli.Command{supervise.Command()}}, os.Args))
		}
		os.Exit(program.Run(&cli.App{Name: "tapestry", Commands: []*cli.Command{Command()}}, os.Args))
	case "agent":
		os.Exit(program.Run(&cli.App{Name: "tapestry", Commands: []*cli.Command{Command()}}, append([]string{"tapestry", "agent"}, os.Args[1:]...)))
	case "plugin":
		os.Exit(plugin.Main())
	case "stranger":
		stranger(os.Args[1:])
		os.Exit(0)
	}
	userns.Main(tests{m})
}

// tests removes the plugin that the tests built.
type tests struct{ *testing.M }

func (t tests) Run() int {
	defer os.RemoveAll(pluginDir())
	return t.M.Run()
}
