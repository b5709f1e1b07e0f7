package app

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/kube/cni/install"
)

func cniCommand() *cli.Command {
	var o install.Options
	dirs := []cli.Flag{
		&cli.StringFlag{Name: "bin-dir", Usage: "`DIR` where the container runtime looks for CNI plugins", Value: "/opt/cni/bin", Destination: &o.BinDir},
		&cli.StringFlag{Name: "conf-dir", Usage: "`DIR` where the container runtime looks for network configurations", Value: "/etc/cni/net.d", Destination: &o.ConfDir},
	}
	return &cli.Command{
		Name:  "cni",
		Usage: "install or remove the CNI plugin of a node",
		Subcommands: []*cli.Command{
			{
				Name:  "install",
				Usage: "put the CNI plugin and its configuration where the container runtime finds them",
				Description: "Copies tapestry-cni and, where there is none, loopback, and writes " + install.ConfigFile + " last, with which the runtime\n" +
					"counts the node's network ready. Every file is replaced whole. It can be run again, to upgrade.",
				Flags: append([]cli.Flag{
					&cli.StringFlag{Name: "source", Usage: "`DIR` with the executables", DefaultText: "that of this program", Destination: &o.Source},
					&cli.StringFlag{Name: "socket", Usage: "`PATH` of the agent's --attach-socket, as the runtime sees it", Value: "/run/tapestry/agent.sock", Destination: &o.Socket},
				}, dirs...),
				Action: func(*cli.Context) error {
					if o.Source == "" {
						exe, err := os.Executable()
						if err != nil {
							return err
						}
						o.Source = filepath.Dir(exe)
					}
					notes, err := install.Install(o)
					for _, n := range notes {
						fmt.Fprintln(os.Stderr, n)
					}
					return err
				},
			},
			{
				Name:   "uninstall",
				Usage:  "remove what install has installed",
				Flags:  dirs,
				Action: func(*cli.Context) error { return install.Uninstall(o) },
			},
		},
	}
}
