/** Multiplies two square matrices that come with the event, and sums the product up in three ways. */

function multiply(left, right) {
  const size = left.length;
  const product = [];
  for (let row = 0; row < size; row++) {
    const sums = new Array(size).fill(0);
    for (let inner = 0; inner < size; inner++) {
      const factor = left[row][inner];
      const other = right[inner];
      for (let column = 0; column < size; column++) sums[column] += factor * other[column];
    }
    product.push(sums);
  }
  return product;
}

export const handler = async ({ left, right }) => {
  const product = multiply(left, right);
  let [sum, trace, weighted] = [0, 0, 0];
  for (const [row, values] of product.entries()) {
    trace += values[row];
    for (const [column, value] of values.entries()) {
      sum += value;
      weighted += value * (row + 1) * (column + 2);
    }
  }
  return { size: product.length, sum, trace, weighted };
};
