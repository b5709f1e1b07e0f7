package bugreport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/output"
	"tapestry.dev/tapestry/cmd/tapestry/doctor"
	"tapestry.dev/tapestry/cmd/tapestry/status"
	"tapestry.dev/tapestry/localapi"
)

// askTime is how long one part may take.
const askTime = 30 * time.Second

// lastFlows is how many events of flows are packed.
const lastFlows = 2000

// Command is "tapestry bugreport".
func Command() *cli.Command {
	var socket, to string
	var logs cli.StringSlice
	return &cli.Command{
		Name:  "bugreport",
		Usage: "pack everything that helps to find a fault of this node's network into one archive, without secrets",
		Description: "Asks the agent of this node, as status and doctor do, and looks at the machine. Changes nothing. Passwords, tokens and\n" +
			"private keys are left out; names and addresses of pods and Services are in it. In a cluster:\n" +
			"kubectl -n kube-system exec ds/tapestry -- tapestry bugreport -o - >bugreport.tar.gz\n" +
			"The agent's log is not within its reach there: kubectl -n kube-system logs ds/tapestry --all-containers",
		Flags: []cli.Flag{
			status.SocketFlag(&socket),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE` to make; - is the standard output", DefaultText: "tapestry-bugreport-TIME.tar.gz", Destination: &to},
			&cli.StringSliceFlag{Name: "log", Usage: "`FILE` of a log, such as the agent's, to pack as well (repeatable)", Destination: &logs},
		},
		Action: func(c *cli.Context) error {
			now := time.Now()
			name := "tapestry-bugreport-" + now.UTC().Format("20060102T150405Z")
			if to == "" {
				to = name + ".tar.gz"
			}
			parts := append(collect(socket), logParts(logs.Value())...)
			if to == "-" {
				return pack(c.Context, c.App.Writer, name, now, parts)
			}
			if err := create(to, func(w io.Writer) error { return pack(c.Context, w, name, now, parts) }); err != nil {
				return fmt.Errorf("%w: give a file that can be made by --output, or - for the standard output", err)
			}
			output.Line(c.App.Writer, to)
			return nil
		},
	}
}

// create makes a file by write. The file is for its owner alone, and is removed if write fails. A file that is there
// stays as it is.
func create(name string, write func(io.Writer) error) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}

// collect returns what is asked of the agent at socket, and of the machine.
func collect(socket string) []part {
	client := &localapi.Client{Path: socket}
	parts := []part{
		{"status.txt", func(ctx context.Context, w io.Writer) error { return status.Print(ctx, w, client) }},
		{"doctor.json", func(ctx context.Context, w io.Writer) error {
			return output.JSON(w, doctor.Diagnose(doctor.Gather(ctx, doctor.Options{Socket: socket, Credentials: doctor.Credentials})))
		}},
		{"node.json", func(ctx context.Context, w io.Writer) error {
			n, err := client.Node(ctx)
			return errors.Join(err, output.JSON(w, n))
		}},
		{"flows.json", func(ctx context.Context, w io.Writer) error {
			return client.Flows(ctx, localapi.FlowQuery{Last: lastFlows}, func(f *localapi.Flow, _ uint64) error { return output.JSONLine(w, f) })
		}},
	}
	for _, t := range localapi.All {
		name, _ := t.Is()
		parts = append(parts, part{"tables/" + name + ".json", func(ctx context.Context, w io.Writer) error {
			rows, _, _, err := t.Fetch(ctx, client)
			if err != nil {
				return err
			}
			return output.JSON(w, rows)
		}})
	}
	for i, p := range parts {
		parts[i].write = func(ctx context.Context, w io.Writer) error {
			ctx, cancel := context.WithTimeout(ctx, askTime)
			defer cancel()
			return p.write(ctx, w)
		}
	}
	return append(parts, part{"machine.txt", machine}, part{"interfaces.txt", interfaces})
}

// logParts returns the ends of logs.
func logParts(names []string) []part {
	var parts []part
	for i, name := range names {
		parts = append(parts, part{fmt.Sprintf("logs/%d-%s", i+1, filepath.Base(name)), func(_ context.Context, w io.Writer) error {
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			size, err := f.Seek(0, io.SeekEnd)
			if err != nil {
				return err
			}
			if _, err := f.Seek(max(0, size-most), io.SeekStart); err != nil {
				return err
			}
			_, err = io.Copy(w, f)
			return err
		}})
	}
	return parts
}
