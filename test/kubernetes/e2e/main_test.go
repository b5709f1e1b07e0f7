// Package e2e tests Tapestry on the cluster that klab has brought up and applied it to. "make e2e" does all of that.
// The official conformance tests check what a Service must do. These tests check what the official ones leave out: the
// client's address, traffic from nodes, restarts under load, leaks.
package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"tapestry.dev/tapestry/test/kubernetes/lab"
)

// The cluster of all tests. The process runs in the network of the first node.
var (
	theLab lab.Lab
	state  lab.State
	config *rest.Config
	client kubernetes.Interface
)

func TestMain(m *testing.M) {
	if err := prepare(); err != nil {
		// The tests are not skipped: whoever runs them wants to know.
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func prepare() error {
	bin, err := filepath.Abs("../../../bin/kubernetes")
	if err != nil {
		return err
	}
	if dir := os.Getenv("TAPESTRY_KUBERNETES_BIN"); dir != "" {
		bin = dir
	}
	theLab = lab.Lab{Work: lab.DefaultWork(), Bin: bin}
	if state, err = theLab.State(); err != nil {
		return fmt.Errorf("%w, and deploy to it with \"klab apply\"", err)
	}
	if err := enter(state.Nodes[0]); err != nil {
		return err
	}
	if config, err = clientcmd.BuildConfigFromFlags("", theLab.Kubeconfig()); err != nil {
		return err
	}
	config.WarningHandler = rest.NoWarnings{} // one for each read of Endpoints
	config.QPS, config.Burst = 1000, 1000     // the default of 5 a second is too slow
	client, err = kubernetes.NewForConfig(config)
	return err
}

// enter starts this program again in the network of the node, unless it runs there already.
func enter(n lab.Node) error {
	there, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", n.PID))
	if err != nil {
		return err
	}
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil || here == there {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	argv, err := state.In(n.Name, append([]string{self}, os.Args[1:]...)...)
	if err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	return errors.Join(errors.New("enter the network of "+n.Name), syscall.Exec(path, argv, os.Environ()))
}
