package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tapestry.dev/tapestry/cmd/tapestry-lab/app"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/product"
)

// The test binary is tapestry-lab and the helpers that the tests run. The product is built.
func TestMain(m *testing.M) {
	lab.Maybe()
	// Under the race detector every process would otherwise sleep for a second when it ends.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	if len(os.Args) > 2 && os.Args[1] == "e2e-helper" {
		os.Exit(help(os.Args[2], os.Args[3:]))
	}
	// A test binary's own arguments are all flags.
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		os.Exit(app.Run(os.Args))
	}
	os.Exit(run(m))
}

// run runs the tests with a folder of their own for the labs, so that "all labs" means those of the tests.
func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	os.Setenv("XDG_RUNTIME_DIR", dir)
	exe := filepath.Join(dir, "bin", "tapestry") // the name tapestry in dir is taken by the folder of the labs
	if out, err := exec.Command("go", "build", "-o", exe, "tapestry.dev/tapestry/cmd/tapestry").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the product: %v: %s\n", err, out)
		return 1
	}
	os.Setenv(product.Variable, exe)
	return m.Run()
}

// helpers lists what the tests run inside of namespaces. A helper that lasts until its standard input ends prints
// "started" when it has begun. Its last line is the result.
var helpers = map[string]func(ctx context.Context, args []string) error{
	"talk":           talk,
	"capture":        capture,
	"mac":            mac,
	"ask-as":         askAs,
	"plain-udp":      plainUDP,
	"ask-udp":        askUDP,
	"transfer-serve": transferServe,
	"transfer":       transfer,
	"wireguard-junk": wireguardJunk,
	"fuzz-frames":    fuzzFrames,
	"spoof-frames":   spoofFrames,
	"attach-as":      attachAs,
	"load-serve":     loadServe,
	"flood":          flood,
	"deaf":           deaf,
	"push":           push,
	"unplug":         unplug,
	"mix":            mix,
	"usage":          usage,
	"sink":           sink,
	"counters":       counters,
	"crowd":          crowd,
	"new-flows":      newFlows,
	"ask-in-vain":    askInVain,
	"resolve":        resolve,
	"idle":           idle,
	"last":           last,
	"old-keeper":     oldKeeper,
	"last-serve":     lastServe,
	"reconnect":      reconnect,
	"spread":         spread,
	"ask-many":       askMany,
	"browse":         browse,
	"slam":           slam,
	"knock":          knock,
	"lead":           lead,
	"serve-outside":  serveOutside,
	"announce":       announceLinks,
	"associate":      associate,
	"associations":   associations,
	"tries":          tries,
	"leave":          leave,
	"give-up":        giveUp,
	"greet":          greet,
	"meet":           meet,
	"use-up":         useUp,
	"listen":         listen,
	"tick":           tick,
	"by-proxy":       byProxy,
	"keep":           keep,
	"cling":          cling,
	"serve-half":     serveHalf,
	"ask-half":       askHalf,
}

func help(name string, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	f := helpers[name]
	if f == nil {
		fmt.Fprintln(os.Stderr, "no such helper:", name)
		return 2
	}
	if err := f(ctx, args); err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		return 1
	}
	return 0
}
