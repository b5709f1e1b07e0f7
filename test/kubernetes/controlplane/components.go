package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"
	logsapi "k8s.io/component-base/logs/api/v1"
	_ "k8s.io/component-base/logs/json/register"          // as in the components' own main packages
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // likewise
	_ "k8s.io/component-base/metrics/prometheus/version"  // likewise
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

// frontProxy is the API server's name towards extension API servers.
const frontProxy = "front-proxy-client"

// components has the commands of one control plane. All are made before the first one runs.
type components struct {
	apiserver, manager, scheduler *cobra.Command
}

func newComponents() components {
	// Each component configures logging in the same way. The second attempt would be refused.
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged
	var c components
	// The controller manager comes first: making its command overrides the default of a feature gate. That panics once
	// any command has put the gates on a flag set.
	c.manager = manager.NewControllerManagerCommand()
	c.apiserver = apiserver.NewAPIServerCommand()
	c.scheduler = schedulerCommand()
	return c
}

// schedulerCommand returns kube-scheduler's command without its signal handling, which panics when a process uses it
// twice.
func schedulerCommand() *cobra.Command {
	opts := scheduleroptions.NewOptions()
	c := &cobra.Command{Use: "kube-scheduler", RunE: func(cmd *cobra.Command, _ []string) error {
		if err := opts.ComponentGlobalsRegistry.Set(); err != nil {
			return err
		}
		config, s, err := scheduler.Setup(cmd.Context(), opts)
		if err != nil {
			return err
		}
		return scheduler.Run(cmd.Context(), config, s)
	}}
	for _, f := range opts.Flags.FlagSets {
		c.Flags().AddFlagSet(f)
	}
	return c
}

// run runs the command. It sends on died when the command has ended.
func run(c *cobra.Command, args []string, died chan<- error) {
	c.SetArgs(args)
	c.SilenceUsage = true
	go func() {
		err := c.ExecuteContext(context.Background())
		died <- fmt.Errorf("%s ended: %v", c.Name(), err)
	}()
}

func (o options) pki(name string) string { return filepath.Join(o.dir, "pki", name) }

func (o options) kubeconfig(name string) string { return filepath.Join(o.dir, name+".kubeconfig") }

func (o options) apiserverFlags(etcd string) []string {
	const issuer = "https://kubernetes.default.svc.cluster.local"
	return append([]string{
		"--etcd-servers=" + etcd,
		"--bind-address=" + o.bind,
		"--advertise-address=" + o.advertise,
		fmt.Sprintf("--secure-port=%d", o.port),
		"--cert-dir=" + o.dir,
		"--tls-cert-file=" + o.pki("apiserver.crt"),
		"--tls-private-key-file=" + o.pki("apiserver.key"),
		"--client-ca-file=" + o.pki("ca.crt"),
		"--service-cluster-ip-range=" + joined(o.serviceCIDRs),
		"--service-account-issuer=" + issuer,
		"--api-audiences=" + issuer,
		"--service-account-key-file=" + o.pki("service-account.pub"),
		"--service-account-signing-key-file=" + o.pki("service-account.key"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--kubelet-client-certificate=" + o.pki("apiserver-kubelet.crt"),
		"--kubelet-client-key=" + o.pki("apiserver-kubelet.key"),
		"--kubelet-certificate-authority=" + o.pki("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP,Hostname",
		// The official tests include extension API servers.
		"--requestheader-client-ca-file=" + o.pki("front-ca.crt"),
		"--requestheader-allowed-names=" + frontProxy,
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + o.pki("front-client.crt"),
		"--proxy-client-key-file=" + o.pki("front-client.key"),
		// The API server connects to pods directly, since nothing serves ClusterIPs on its host until there is a
		// network.
		"--enable-aggregator-routing=true",
		"--shutdown-delay-duration=0s",
	}, o.apiserverArgs...)
}

// managerFlags lets the controller manager act as administrator. With a service account for each controller it would
// wait more than 4 s for their tokens.
func (o options) managerFlags(port int) []string {
	flags := append(o.controllerFlags("admin", port),
		"--use-service-account-credentials=false",
		"--service-account-private-key-file="+o.pki("service-account.key"),
		"--root-ca-file="+o.pki("ca.crt"),
		"--cluster-signing-cert-file="+o.pki("ca.crt"),
		"--cluster-signing-key-file="+o.pki("ca.key"),
		"--allocate-node-cidrs=true",
		"--cluster-cidr="+joined(o.podCIDRs),
		"--service-cluster-ip-range="+joined(o.serviceCIDRs),
		"--node-monitor-period=2s",
		"--endpointslice-updates-batch-period=0s",
	)
	switch {
	case len(o.podCIDRs) == 2:
		flags = append(flags, "--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64")
	case o.podCIDRs[0].Addr().Is4():
		flags = append(flags, "--node-cidr-mask-size=24")
	default:
		flags = append(flags, "--node-cidr-mask-size=64")
	}
	return append(flags, o.controllerArgs...)
}

func (o options) schedulerFlags(port int) []string { return o.controllerFlags("scheduler", port) }

// controllerFlags returns the flags that controller manager and scheduler share.
func (o options) controllerFlags(user string, port int) []string {
	kubeconfig := o.kubeconfig(user)
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", port),
		"--cert-dir=" + o.dir,
		"--leader-elect=false",
	}
}
