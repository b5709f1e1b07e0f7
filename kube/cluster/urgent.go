package cluster

import corev1 "k8s.io/api/core/v1"

// Urgent returns a channel that has a value when a pod of this node that runs has begun to terminate. The kubelet hears
// of that at the same time, and tells the pod: connections that come to it after that fail. Values are as few as pods
// that the kubelet has started, so whoever makes and deletes pods without a pause hastens nothing.
func (c *Cluster) Urgent() <-chan struct{} { return c.urgent }

// hasten looks at a pod that has changed. It does not block.
func (c *Cluster) hasten(before, is *corev1.Pod) {
	if before.DeletionTimestamp != nil || is.DeletionTimestamp == nil || is.Status.Phase != corev1.PodRunning || is.Status.PodIP == "" {
		return
	}
	select {
	case c.urgent <- struct{}{}:
	default: // a value is waiting already
	}
}
