// What the scripts of a page find in it.
interface Window {
  MST_PLOTLY_URL?: string;
  MstViewer?: Record<string, unknown>;
  Plotly?: any;
  mstPage?: Record<string, (...inputs: unknown[]) => unknown[]>;
}
